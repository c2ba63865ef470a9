//! Geometry, escaping and size of the drawing.

use super::*;
use crate::hdr::sample::SampleStream;
use crate::hdr::{Latency, percentile_walk};

fn series(name: &str, style: usize, times: impl IntoIterator<Item = u64>) -> PlotSeries {
    let mut latency = Latency::new();
    times.into_iter().for_each(|time| latency.record(time, false));
    PlotSeries { name: name.to_owned(), style, steps: percentile_walk(latency.unwaited()) }
}

fn draw(series: Vec<PlotSeries>) -> String {
    svg(&Plot { id: "p0".to_owned(), title: "punch".to_owned(), series })
}

/// The points of the line of `style`.
fn points(svg: &str, style: usize) -> Vec<(f64, f64)> {
    let start = svg.find(&format!("<path class=\"d{style}\" d=\"")).unwrap();
    let path = svg[start..].split('"').nth(3).unwrap();
    let pair = |point: &str| {
        let (x, y) = point.split_once(' ').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    path.split(['M', 'L']).filter(|point| !point.is_empty()).map(pair).collect()
}

#[test]
fn equal_factors_are_equal_distances() {
    let scale = AxisScale { nines: 5.0, low: 2, high: 8 };
    let x: Vec<f64> = (0..=5).map(|nines| scale.x(f64::from(nines))).collect();
    let y: Vec<f64> = (2..=8).map(|decade| scale.y(10_u64.pow(decade))).collect();
    for steps in [x.windows(2), y.windows(2)] {
        let distances: Vec<f64> = steps.map(|pair| pair[1] - pair[0]).collect();
        assert!(distances.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 1e-9), "{distances:?}");
    }
    assert_eq!((x[0], x[5], y[0], y[6]), (LEFT, RIGHT, BOTTOM, TOP));
}

#[test]
fn lines_go_right_and_up_and_stay_inside() {
    let mut stream = SampleStream(8);
    let many = series("many", 3, (0..70_000).map(|_| (10_f64.powf(9.0 * stream.next())) as u64));
    let mut drawn = String::new();
    // With few calls, the last step before 100% can lie beyond the share of one call.
    for calls in 2..60 {
        let few = series("few", 0, (0..calls).map(|_| 1 + (1e7 * stream.next()) as u64));
        drawn = draw(vec![few, many.clone()]);
        for style in [0, 3] {
            let points = points(&drawn, style);
            assert!(points.len() >= 2, "{}", points.len());
            for pair in points.windows(2) {
                assert!(pair[1].0 >= pair[0].0 && pair[1].1 <= pair[0].1, "{pair:?} goes left or down");
            }
            let inside = |&(x, y): &(f64, f64)| (LEFT..=RIGHT).contains(&x) && (TOP..=BOTTOM).contains(&y);
            assert!(points.iter().all(inside), "{points:?}");
        }
    }
    let ends = [0, 3].map(|style| points(&drawn, style).last().unwrap().0);
    assert!(
        ends[0] < ends[1] && ends[1] == RIGHT,
        "the line of sixty calls must end left of that of seventy thousand: {ends:?}"
    );
}

#[test]
fn text_is_escaped_and_lines_without_calls_are_left_out() {
    let drawn = draw(vec![series("<b>&\"'", 1, [5]), series("idle", 2, [])]);
    assert!(drawn.contains("&lt;b&gt;&amp;&quot;&#39;") && !drawn.contains("<b>"), "{drawn}");
    assert!(!drawn.contains("idle"));
    assert!(drawn.contains("<title id=\"p0-t\">punch</title><desc id=\"p0-d\">"));
}

#[test]
fn odd_numbers_give_finite_coordinates() {
    for drawn in [
        draw(vec![]),
        draw(vec![series("one", 0, [1])]),
        draw(vec![series("longest", 0, [u64::MAX, 0])]),
        draw(vec![PlotSeries {
            name: "raw".to_owned(),
            style: 77,
            steps: vec![PercentileStep { quantile: 1.0, value: 0, count: u64::MAX }],
        }]),
        draw(vec![PlotSeries {
            name: "raw".to_owned(),
            style: 7,
            steps: vec![PercentileStep { quantile: 0.0, value: u64::MAX, count: 0 }],
        }]),
    ] {
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}

#[test]
fn a_line_has_a_bounded_number_of_points_and_keeps_its_ends() {
    let jagged: Vec<(f64, f64)> = (0..5_000).map(|i| (f64::from(i), f64::from(i % 7) * 10.0)).collect();
    let thinned = thin(&jagged);
    assert!(thinned.len() <= MAX_POINTS && thinned.len() > MAX_POINTS / 4, "{}", thinned.len());
    assert_eq!((thinned[0], thinned[thinned.len() - 1]), (jagged[0], jagged[4_999]));
    let level: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), 3.0)).collect();
    assert_eq!(thin(&level), [(0.0, 3.0), (49.0, 3.0)]);
}

#[test]
fn the_legend_is_sorted_by_the_longest_call() {
    let drawn = draw(vec![series("short", 0, [10]), series("long", 1, [10_000_000]), series("middle", 2, [10_000])]);
    let at = |name: &str| drawn.find(&format!(">{name}<")).unwrap();
    assert!(at("long") < at("middle") && at("middle") < at("short"), "{drawn}");
}
