//! A line of kernel text, as it is read everywhere.
//!
//! A file of sysfs holds one line. Some kernels write more of their buffer than that: a NUL, and after it
//! what was there before (`thread_siblings_list` and `cpulist` of Linux 5.15-rc1). Text ends at the first
//! NUL, and a line at its end.

/// The text up to its first NUL.
pub fn text(text: &str) -> &str {
    text.split('\0').next().unwrap_or_default()
}

/// The first line, without blanks around it.
pub fn line(given: &str) -> &str {
    text(given).lines().next().unwrap_or_default().trim()
}

/// A whole number that is a line of its own.
pub fn number<T: std::str::FromStr>(given: &str) -> Option<T> {
    line(given).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_ends_at_its_end() {
        for odd in ["0-1", "0-1\n", "0-1\n\0", "0-1\0\u{7f}x\n", " 0-1 \r\n", "0-1\njunk\n", "0-1\n\0\0junk"]
        {
            assert_eq!(line(odd), "0-1", "{odd:?}");
        }
        assert_eq!((line("\n"), line(""), line("\0x")), ("", "", ""));
        assert_eq!((number::<i32>("-1\n\0"), number::<i32>("one\n")), (Some(-1), None));
    }

    proptest! {
        #[test]
        fn a_line_is_one(given in "[0-9a-z \\n\\r\\x00]{0,40}") {
            let line = line(&given);
            prop_assert!(!line.contains(['\n', '\0']));
            prop_assert_eq!(line.trim(), line);
        }
    }
}
