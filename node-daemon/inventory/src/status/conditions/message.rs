//! One sentence out of parts that others wrote.

/// Characters of a message.
const SENTENCE: usize = 512;
/// Entries of a list that are named.
const NAMED: usize = 3;
/// Characters of one entry of a list.
const ENTRY: usize = 120;

/// The text as one line of at most 512 characters, without a full stop in it or at its end.
pub(super) fn sentence(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !matches!(*word, "" | "."))
        .collect();
    let mut line = String::with_capacity(text.len());
    for (index, word) in words.iter().enumerate() {
        let last = index + 1 == words.len();
        match word.strip_suffix('.') {
            // Dots within words are versions, addresses and file names.
            Some(rest) if !rest.ends_with('.') => {
                line.push_str(rest);
                line.push_str(if last { "" } else { ";" });
            }
            _ => line.push_str(word),
        }
        line.push_str(if last { "" } else { " " });
    }
    clip(&line, SENTENCE)
}

/// At most `limit` characters of the text; what is cut ends with an ellipsis.
pub(super) fn clip(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.into();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The first entries of a list, and how many more there are.
pub(super) fn listed(entries: &[String]) -> String {
    listed_by(entries, ", ")
}

/// The first entries of a list of clauses, and how many more there are.
pub(super) fn clauses(entries: &[String]) -> String {
    listed_by(entries, "; ")
}

/// The first so many entries of a list, and how many more there are.
pub(super) fn some(entries: &[String], most: usize) -> String {
    first_of(entries, ", ", most)
}

fn listed_by(entries: &[String], separator: &str) -> String {
    first_of(entries, separator, NAMED)
}

fn first_of(entries: &[String], separator: &str, most: usize) -> String {
    let named: Vec<String> = entries.iter().take(most).map(|entry| clip(entry, ENTRY)).collect();
    let text = named.join(separator);
    match entries.len().checked_sub(most) {
        Some(more) if more > 0 => format!("{text} and {more} more"),
        Some(_) | None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_others_wrote_becomes_one_sentence() {
        assert_eq!(sentence("Failed.\n  See /var/log/x.log. "), "Failed; See /var/log/x.log");
        assert_eq!(sentence("libvirt 8.6.0 and more..."), "libvirt 8.6.0 and more...");
        assert_eq!(sentence(" \n"), "");
        assert_eq!(sentence(". ."), "");
    }

    #[test]
    fn long_lists_are_counted() {
        let entries: Vec<String> = (0..5).map(|number| number.to_string()).collect();
        assert_eq!(listed(&entries), "0, 1, 2 and 2 more");
        assert_eq!(clauses(&entries[..2]), "0; 1");
        assert_eq!(listed(&[]), "");
    }

    proptest! {
        #[test]
        fn a_sentence_is_one_line_of_bounded_length(text in "\\PC{0,700}|([a-z.\\n ]{0,40})") {
            let line = sentence(&text);
            prop_assert!(line.chars().count() <= SENTENCE);
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(line.trim(), &line);
        }
    }
}
