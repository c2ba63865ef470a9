//! Words in error messages: suggestions, quoting, lists.

/// In a custom serde error, the text after this mark becomes the help line.
pub(super) const HELP_MARK: &str = "\nhelp: ";

/// The candidate that a mistyped word most likely means; `None` if no candidate is near.
///
/// A candidate is near if at most a third of the longer word's characters differ (insert, delete,
/// replace, swap of neighbours; at least one change is allowed), ignoring case. Of equally near
/// candidates the first one is returned, so messages are stable.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer than any name that a user can mistype. It bounds the quadratic comparison.
    const WORD_BYTES_MAX: usize = 128;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= WORD_BYTES_MAX)
        .filter_map(|candidate| {
            let distance = strsim::osa_distance(&lower, &candidate.to_lowercase());
            let longer = word.chars().count().max(candidate.chars().count());
            let shares_some = distance < longer;
            (shares_some && distance <= (longer / 3).max(1)).then_some((distance, candidate))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// A user's word as messages quote it: control characters escaped, a very long word cut.
pub fn shown(word: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    let mut chars = word.chars();
    let mut text = String::new();
    for c in chars.by_ref().take(SHOWN_CHARS) {
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    if chars.next().is_some() {
        text.push('…');
    }
    text
}

/// "`a`, `b` or `c`".
pub fn or_list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}
