//! Untrusted text (from registries, archives, configs of images) in a form that is safe to print on a
//! terminal, in a log and in an error.

use std::fmt;

/// The most characters of one text.
const MAX_LENGTH: usize = 1000;
/// The mark at the end of a truncated text.
const CUT: &str = " [...]";

/// Text of bounded length without control characters, escape sequences and characters that change the
/// direction of text. Such characters are escaped, as in `\u{1b}`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Printable(Box<str>);

impl Printable {
    /// Makes text printable. White space of any kind becomes a single space, so the result is one line.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(printable(text, MAX_LENGTH).into())
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Printable {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Printable {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<&String> for Printable {
    fn from(text: &String) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Makes text printable like [`Printable`], and truncates it to `longest` characters.
#[must_use]
pub fn printable(text: &str, longest: usize) -> String {
    let mut shown = String::new();
    let mut count = 0;
    let mut after_space = true;
    for letter in text.trim_end().chars() {
        let is_space = matches!(letter, ' ' | '\t' | '\r' | '\n');
        if is_space && after_space && letter != ' ' {
            continue;
        }
        if count >= longest {
            shown.push_str(CUT);
            break;
        }
        after_space = is_space;
        match letter {
            letter if is_space && letter != ' ' => shown.push(' '),
            letter if is_unprintable(letter) => {
                let escaped = letter.escape_unicode();
                count += escaped.len() - 1;
                shown.extend(escaped);
            }
            letter => shown.push(letter),
        }
        count += 1;
    }
    shown
}

/// Returns JSON with the same meaning whose strings contain no unprintable characters. Outside of strings,
/// valid JSON has no such characters except white space.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    let mut units = [0; 2];
    for letter in json.chars() {
        if letter.is_ascii_whitespace() || !is_unprintable(letter) {
            shown.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut units) {
            shown.push_str(&format!("\\u{unit:04x}"));
        }
    }
    shown
}

/// Returns whether a character is not simply visible: controls (C0, DEL, C1), directional formatting (Unicode
/// UAX #9, CVE-2021-42574), and characters without width.
fn is_unprintable(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BIDI: &str =
        "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";

    #[test]
    fn unprintable_characters_are_escaped() {
        for (text, shown) in [
            ("manifest unknown", "manifest unknown"),
            ("größer, 大きい", "größer, 大きい"),
            ("\u{1b}[31mred\u{1b}]0;title\u{7}", "\\u{1b}[31mred\\u{1b}]0;title\\u{7}"),
            ("a\u{202e}txt.exe\u{2066}", "a\\u{202e}txt.exe\\u{2066}"),
            ("\u{61c}\u{200e}\u{200f}", "\\u{61c}\\u{200e}\\u{200f}"),
            ("c1 \u{9b}2J \u{7f}", "c1 \\u{9b}2J \\u{7f}"),
            ("one\r\n\ttwo\n\n", "one two"),
            ("two  spaces", "two  spaces"),
            ("nul\0", "nul\\u{0}"),
        ] {
            assert_eq!(Printable::new(text).as_str(), shown);
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "a\u{202e}": ["\u{1b}\n\u{9b}", "ä"], "tag\u{e0001}": 1 });
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let shown = printable_json(&pretty);
        assert!(!shown.contains(['\u{202e}', '\u{9b}', '\u{e0001}']) && shown.contains('ä'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    proptest! {
        #[test]
        fn the_result_is_printable_and_bounded(text in "(\\PC|\\p{Cc}|\\p{Cf}|\\p{Zl}|\\p{Zp}|x{0,300}){0,60}") {
            let shown = Printable::new(&text);
            prop_assert!(!shown.as_str().chars().any(is_unprintable), "{:?}", shown);
            let controls = |letter: char| letter.is_control() || BIDI.contains(letter);
            prop_assert!(!shown.as_str().contains(controls), "{:?}", shown);
            prop_assert!(shown.as_str().chars().count() <= MAX_LENGTH + 10 + CUT.len());
        }

        #[test]
        fn printable_text_is_unchanged(text in "[ -~äöü大]{0,200}") {
            let shown = Printable::new(&text);
            prop_assert_eq!(shown.as_str(), text.trim_end());
            prop_assert_eq!(Printable::new(shown.as_str()), shown);
        }
    }
}
