//! Writing JSON by hand: what a few lines of text need.

use std::fmt::Write as _;

/// A JSON string (RFC 8259, section 7).
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings() {
        assert_eq!(quoted("a\"b\\c\nd\u{1}ä"), "\"a\\\"b\\\\c\\u000ad\\u0001ä\"");
    }
}
