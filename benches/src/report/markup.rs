//! HTML and SVG, balanced and escaped by the way they are written. Pure.

use std::fmt::{Display, Write as _};

/// Text that grows: elements are closed by the end of the closure that fills them,
/// and everything given as text or as an attribute is escaped.
#[derive(Debug, Default)]
pub(super) struct Markup {
    out: String,
}

/// Attributes of an element.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a dyn Display)];

impl Markup {
    /// An element with what `fill` puts into it.
    pub(super) fn within(
        &mut self,
        tag: &'static str,
        attributes: Attributes<'_>,
        fill: impl FnOnce(&mut Self),
    ) {
        self.start(tag, attributes);
        self.out.push('>');
        fill(self);
        self.push(format_args!("</{tag}>"));
        if !matches!(tag, "b" | "code" | "span" | "a" | "i" | "title" | "text" | "tspan") {
            self.out.push('\n');
        }
    }

    /// An element with a text.
    pub(super) fn element(&mut self, tag: &'static str, attributes: Attributes<'_>, text: &str) {
        self.within(tag, attributes, |inside| inside.text(text));
    }

    /// An element with nothing in it.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.start(tag, attributes);
        self.out.push_str("/>\n");
    }

    /// Text.
    pub(super) fn text(&mut self, text: &str) {
        escape(text, &mut self.out);
    }

    /// Markup that this type has made.
    pub(super) fn markup(&mut self, markup: &str) {
        self.out.push_str(markup);
    }

    /// All of it.
    pub(super) fn finish(self) -> String {
        self.out
    }

    fn start(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.push(format_args!("<{tag}"));
        for (name, value) in attributes {
            self.push(format_args!(" {name}=\""));
            escape(&value.to_string(), &mut self.out);
            self.out.push('"');
        }
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("writing to a String cannot fail");
    }
}

/// Control characters cannot stand in XML at all: they are shown as U+FFFD.
fn escape(text: &str, out: &mut String) {
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(letter),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            letter => out.push(letter),
        }
    }
}

/// Estimated width of a text in units of its size. For DejaVu Sans and Verdana, the
/// widest of the usual fonts: in others there is room left.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let of = |letter: char| match letter {
        'i' | 'j' | 'l' | '\'' => 0.29,
        ' ' | '.' | ',' | ':' | ';' | '|' | 'I' | '!' => 0.34,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | '-' => 0.42,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '–' | '…' | '—' => 1.0,
        '×' | '+' | '=' | '<' | '>' => 0.84,
        'A'..='Z' => 0.78,
        letter if letter.is_ascii() => 0.64,
        // Letters of other scripts may be as wide as they are high.
        _ => 1.0,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// A text in lines no wider than `room`; words that are wider are broken.
pub(super) fn wrap(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width(&longer, size) <= room {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for letter in word.chars() {
            line.push(letter);
            if width(&line, size) > room && line.chars().count() > 1 {
                line.pop();
                lines.push(std::mem::take(&mut line));
                line.push(letter);
            }
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// Not more than `most` lines; the last ends in an ellipsis if some were left out.
pub(super) fn wrap_at_most(text: &str, size: f64, room: f64, most: usize) -> Vec<String> {
    let mut lines = wrap(text, size, room - width("…", size));
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            last.push('…');
        }
    }
    lines
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn everything_is_escaped_and_balanced() {
        let mut markup = Markup::default();
        markup.within("p", &[("title", &"\"><script>")], |inside| {
            inside.text("a < b && 'c'\u{0}");
            inside.empty("br", &[]);
        });
        assert_eq!(
            markup.finish(),
            "<p title=\"&quot;&gt;&lt;script&gt;\">a &lt; b &amp;&amp; &#39;c&#39;\u{fffd}<br/>\n\
             </p>\n"
        );
    }

    #[test]
    fn lines_are_no_wider_than_the_room() {
        for text in ["one two three four", "averyveryveryveryverylongword x", "", "ж 漢字漢字漢字"]
        {
            let lines = wrap(text, 10.0, 60.0);
            assert!(lines.iter().all(|line| width(line, 10.0) <= 60.0), "{lines:?}");
            let joined: String = lines.concat().replace(' ', "");
            assert_eq!(joined, text.replace(' ', ""));
        }
        let few = wrap_at_most("one two three four five six", 10.0, 60.0, 2);
        assert!(few.len() == 2 && few[1].ends_with('…'), "{few:?}");
        assert!(few.iter().all(|line| width(line, 10.0) <= 60.0), "{few:?}");
    }
}
