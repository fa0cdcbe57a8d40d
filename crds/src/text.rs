//! Words of others, for people to read.

/// A text without what a terminal takes for a command and what makes a line look like another: control
/// characters, line separators, and marks that turn the direction of text, each written out as
/// `\u{1b}`, and `\n` for a new line.
pub fn plain(text: &str) -> String {
    let escaped = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
            // No character at all, which YAML and XML refuse.
            || u32::from(c) & 0xfffe == 0xfffe
    };
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' | '\r' => plain.extend(c.escape_default()),
            c if escaped(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

/// The same for a text of lines of ours, in which words of others cannot make new ones.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_moves_a_terminal_or_makes_a_line() {
        assert_eq!(plain("in use\nNode: b \u{1b}[31m\u{7}"), "in use\\nNode: b \\u{1b}[31m\\u{7}");
        assert_eq!(plain("a\u{202e}b\u{2028}c\u{9b}d\u{2066}"), "a\\u{202e}b\\u{2028}c\\u{9b}d\\u{2066}");
        assert_eq!(plain("\u{fffe}\u{7f}\u{1ffff}"), "\\u{fffe}\\u{7f}\\u{1ffff}");
        assert_eq!(plain("Größe 24 GiB ≥ \u{1f600}"), "Größe 24 GiB ≥ \u{1f600}");
        assert_eq!(plain_lines("a\u{1b}\nb\r\n"), "a\\u{1b}\nb\\r\n");
    }
}
