//! The percentile plot: call times of one operation, one line per design, as an SVG element.
//!
//! Both axes are logarithmic. The horizontal axis is HdrHistogram's percentile scale: equal steps
//! are equal factors of 1/(1-p), so 90%, 99% and 99.9% are equally far apart. The comparison is
//! about the tail, and this scale gives the tail room. The vertical axis is time. The legend is
//! part of the drawing. It is sorted by the lines' ends, so that it lists them from top to bottom
//! as they are drawn. The same numbers give the same bytes.
//!
//! Invariant: all text is escaped, every coordinate is finite, and a line has at most
//! [`MAX_POINTS`] points. There is no kernel counterpart.

use std::fmt::Write as _;

use crate::hdr::PercentileStep;
use crate::human::{self, one_line};

/// Points kept of one line. A walk to 99.9999% has about a hundred.
pub const MAX_POINTS: usize = 160;

/// The number of colours and of dash patterns; further lines repeat them.
pub const STYLES: usize = 10;

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 670.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 284.0;

/// Colours on white, by style. A page overrides them with `--s0` to `--s9`, for a dark background
/// for instance.
const COLOURS: [&str; STYLES] =
    ["#0072b2", "#d55e00", "#009e73", "#b3348e", "#7a5c00", "#3f51b5", "#c2185b", "#5d7d00", "#00838f", "#616161"];

/// Dash patterns by style, so that lines differ without colour too.
const DASHES: [&str; STYLES] = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3", "12 4", "4 2"];

/// One design's line.
#[derive(Clone, Debug, PartialEq)]
pub struct PlotSeries {
    /// The design's name.
    pub name: String,
    /// Which colour and dash pattern, taken modulo [`STYLES`]. A page uses the same for a design in
    /// all its plots.
    pub style: usize,
    /// The steps of its histogram: quantiles from 0 to 1, times in nanoseconds. See
    /// [`crate::hdr::percentile_walk`].
    pub steps: Vec<PercentileStep>,
}

/// A plot to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// The prefix of the element ids; must be unique in the page.
    pub id: String,
    /// The title, which a screen reader says.
    pub title: String,
    /// The lines. Lines without steps are not drawn.
    pub series: Vec<PlotSeries>,
}

/// Escapes text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// Ranges of the axes: horizontal in decades of 1/(1-p), vertical in decades of nanoseconds.
struct AxisScale {
    nines: f64,
    low: i32,
    high: i32,
}

impl AxisScale {
    fn of(series: &[PlotSeries]) -> AxisScale {
        let steps = || series.iter().flat_map(|series| &series.steps);
        let most = steps().map(|step| step.count).max().unwrap_or(0).max(10);
        let (low, high) = steps().fold((u64::MAX, 1), |(low, high), s| (low.min(s.value), high.max(s.value)));
        let low = low.clamp(1, high).ilog10() as i32;
        let high = (high as f64).log10().ceil() as i32;
        AxisScale { nines: (most as f64).log10().clamp(2.0, 9.0), low, high: high.max(low + 1) }
    }

    /// The x coordinate of a share of calls, given in decades of 1/(1-p).
    fn x(&self, nines: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (nines / self.nines).clamp(0.0, 1.0)
    }

    /// The x coordinate of a step of a walk over `calls` calls. The walk ends at 100%, which would
    /// be infinitely far to the right. The smallest share that differs from 100% is one call, so a
    /// line ends at the share of one call.
    fn x_of(&self, step: &PercentileStep, calls: u64) -> f64 {
        let one_call = (calls.max(1) as f64).log10();
        self.x(if step.quantile < 1.0 { (-(1.0 - step.quantile).log10()).min(one_call) } else { one_call })
    }

    fn y(&self, nanoseconds: u64) -> f64 {
        let share = ((nanoseconds.max(1) as f64).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        BOTTOM - (BOTTOM - TOP) * share.clamp(0.0, 1.0)
    }
}

/// Draws the plot: one `<svg>` element with title, description, axes, lines and legend.
///
/// ```
/// use reports::{hdr, plot};
/// let mut latency = reports::Latency::new();
/// latency.record(12_400, false);
/// let steps = hdr::percentile_walk(latency.unwaited());
/// let series = vec![plot::PlotSeries { name: "kara".into(), style: 0, steps }];
/// let svg = plot::svg(&plot::Plot { id: "p".into(), title: "truncate".into(), series });
/// assert!(svg.starts_with("<svg") && svg.contains(">kara<"));
/// ```
pub fn svg(plot: &Plot) -> String {
    let drawn: Vec<&PlotSeries> = plot.series.iter().filter(|series| !series.steps.is_empty()).collect();
    let scale = AxisScale::of(&plot.series);
    let id = escape(&plot.id);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" \
         xmlns=\"http://www.w3.org/2000/svg\" font-family=\"system-ui,sans-serif\" font-size=\"12\">\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>",
        escape(&plot.title),
        escape(&description(&drawn)),
    );
    axes(&mut out, &scale);
    for series in &drawn {
        line(&mut out, &scale, series);
    }
    legend(&mut out, &drawn);
    out.push_str("</svg>");
    out
}

/// The plot in words: the median and the longest time of each line.
fn description(drawn: &[&PlotSeries]) -> String {
    let mut out = String::from("Call time by percentile, both axes logarithmic.");
    for series in drawn {
        let middle = series.steps.iter().find(|step| step.quantile >= 0.5).map_or(0, |step| step.value);
        let end = series.steps.last().map_or(0, |step| step.value);
        let name = one_line(&series.name, 24);
        let (middle, end) = (human::nanoseconds(middle), human::nanoseconds(end));
        // Writing to a String cannot fail. The same holds for each `let _` below.
        let _ = write!(out, " {name}: median {middle}, longest {end}.");
    }
    out
}

fn axes(out: &mut String, scale: &AxisScale) {
    out.push_str("<g stroke=\"currentColor\" fill=\"none\" stroke-width=\"1\">");
    let _ = write!(out, "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" stroke-opacity=\".6\"/>");
    let mut minor = String::new();
    let mut major = String::new();
    for decade in scale.low..=scale.high {
        let floor = 10_u64.saturating_pow(decade.unsigned_abs());
        if decade > scale.low {
            let _ = write!(major, "M{LEFT} {:.1}H{RIGHT}", scale.y(floor));
        }
        for step in [2, 5].into_iter().filter(|_| decade < scale.high) {
            let _ = write!(minor, "M{LEFT} {:.1}H{RIGHT}", scale.y(floor.saturating_mul(step)));
        }
    }
    for (nines, _) in percent_ticks(scale) {
        let _ = write!(major, "M{:.1} {TOP}V{BOTTOM}", scale.x(nines));
    }
    let _ = write!(out, "<path d=\"{minor}\" stroke-opacity=\".07\"/><path d=\"{major}\" stroke-opacity=\".2\"/></g>");

    out.push_str("<g fill=\"currentColor\" fill-opacity=\".85\"><g text-anchor=\"end\">");
    for decade in scale.low..=scale.high {
        let value = 10_u64.saturating_pow(decade.unsigned_abs());
        let _ =
            write!(out, "<text x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 7.0, scale.y(value) + 4.0, human::tick(value));
    }
    out.push_str("</g><g text-anchor=\"middle\">");
    for (nines, label) in percent_ticks(scale) {
        let x = scale.x(nines);
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"{}\">{label}</text>", BOTTOM + 18.0);
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{}\" fill-opacity=\".7\">\
         share of calls that took at most the time on the left</text></g></g>",
        f64::midpoint(LEFT, RIGHT),
        HEIGHT - 8.0
    );
}

/// Ticks of the horizontal axis: 0%, the median, and decades of 1/(1-p), with their labels.
fn percent_ticks(scale: &AxisScale) -> Vec<(f64, String)> {
    let mut ticks = vec![(0.0, "0%".to_owned()), (2_f64.log10(), "50%".to_owned())];
    for nines in 1..=9_usize {
        if nines as f64 <= scale.nines + 1e-9 {
            let label = match nines {
                1 => "90%".to_owned(),
                2 => "99%".to_owned(),
                _ => format!("99.{}%", "9".repeat(nines - 2)),
            };
            ticks.push((nines as f64, label));
        }
    }
    ticks
}

fn stroke(style: usize) -> String {
    let index = style % STYLES;
    let dash = DASHES[index];
    let dash = if dash.is_empty() { String::new() } else { format!(";stroke-dasharray:{dash}") };
    format!("style=\"stroke:var(--s{index},{}){dash}\"", COLOURS[index])
}

fn line(out: &mut String, scale: &AxisScale, series: &PlotSeries) {
    let calls = series.steps.last().map_or(0, |step| step.count);
    let points: Vec<(f64, f64)> =
        series.steps.iter().map(|step| (scale.x_of(step, calls), scale.y(step.value))).collect();
    let mut path = String::new();
    for (x, y) in thin(&points) {
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
    }
    let _ = write!(
        out,
        "<path class=\"d{}\" d=\"{path}\" fill=\"none\" stroke-width=\"1.8\" stroke-linejoin=\"round\" {}/>",
        series.style,
        stroke(series.style)
    );
}

/// Removes points that make no visible difference: those in the middle of a level stretch, and
/// those within half a pixel of the point before. Then removes every other point until at most
/// [`MAX_POINTS`] are left. The first and the last point stay.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (index, &(x, y)) in points.iter().enumerate() {
        let ends = index == 0 || index + 1 == points.len();
        let level = index > 0 && index + 1 < points.len() && points[index - 1].1 == y && points[index + 1].1 == y;
        let close = kept.last().is_some_and(|last| (last.0 - x).abs() < 0.5 && (last.1 - y).abs() < 0.5);
        if ends || !(level || close) {
            kept.push((x, y));
        }
    }
    while kept.len() > MAX_POINTS {
        let last = kept.len() - 1;
        kept = kept.iter().enumerate().filter(|(i, _)| i % 2 == 0 || *i == last).map(|(_, point)| *point).collect();
    }
    kept
}

fn legend(out: &mut String, drawn: &[&PlotSeries]) {
    let mut sorted = drawn.to_vec();
    sorted.sort_by_key(|series| std::cmp::Reverse(series.steps.last().map_or(0, |step| step.value)));
    let x = RIGHT + 18.0;
    let pitch = ((BOTTOM - TOP) / sorted.len().max(1) as f64).min(22.0);
    let _ = write!(
        out,
        "<text x=\"{x}\" y=\"{TOP}\" fill=\"currentColor\" fill-opacity=\".7\">{}</text>",
        if sorted.is_empty() { "no calls" } else { "longest call" }
    );
    for (index, series) in sorted.iter().enumerate() {
        let y = TOP + 20.0 + pitch * index as f64;
        let longest = human::nanoseconds(series.steps.last().map_or(0, |step| step.value));
        let _ = write!(
            out,
            "<g class=\"d{}\"><path d=\"M{x} {:.1}h26\" stroke-width=\"2.4\" {}/>\
             <text x=\"{}\" y=\"{y:.1}\" fill=\"currentColor\">{}</text>\
             <text x=\"{}\" y=\"{y:.1}\" fill=\"currentColor\" fill-opacity=\".7\" \
             text-anchor=\"end\">{longest}</text></g>",
            series.style,
            y - 4.0,
            stroke(series.style),
            x + 33.0,
            escape(&one_line(&series.name, 16)),
            WIDTH - 4.0,
        );
    }
}

#[cfg(test)]
mod tests;
