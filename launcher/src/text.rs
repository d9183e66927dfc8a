//! Text that others wrote, as it can be shown: names in images, tars, registries and
//! directories may hold whatever does something to a terminal. Pure.

use serde::Serialize;

/// Text that stays on its line and does nothing to a terminal, nor to the order in which
/// it is read.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// As [`printable`], of text in lines.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => printable(line) + "\n",
            None => printable(line),
        })
        .collect()
}

/// A value as JSON that can be shown: what JSON leaves as it is and a terminal does not is
/// escaped as well.
///
/// # Errors
/// As of serde_json.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let plain = serde_json::to_string_pretty(value)?;
    let mut text = String::with_capacity(plain.len() + 1);
    for c in plain.chars() {
        // Outside of strings there are only line ends, and in them none.
        if c != '\n' && is_harmful(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text.push('\n');
    Ok(text)
}

/// Control characters, and marks that turn the direction of text (Unicode's UAX 9).
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_does_nothing_to_a_terminal() {
        assert_eq!(printable("a\x1b[2J\nb\u{9b}\u{e4}"), "a\\u{1b}[2J\\nb\\u{9b}\u{e4}");
        assert_eq!(printable("\u{202e}gpj\u{2066}\x7f"), "\\u{202e}gpj\\u{2066}\\u{7f}");
        assert_eq!(printable_lines("a\x07\nb\r"), "a\\u{7}\nb\\r");
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = "a\x1b\n\u{9b}\u{202e}\u{e4}\u{1f600}\x7f";
        let text = json(&value).unwrap();
        assert_eq!(text, "\"a\\u001b\\n\\u009b\\u202e\u{e4}\u{1f600}\\u007f\"\n");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }
}
