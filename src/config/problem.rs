//! Mistakes in a group file and how they are shown, in the manner of rustc.

use std::{fmt, ops::Range};

/// Problems kept for one file; the rest are only counted.
pub const MAX_PROBLEMS: usize = 100;

/// Characters of a line that are shown around a mistake.
const EXCERPT_CHARS: usize = 160;

/// Characters of the offending text that a message quotes.
const QUOTE_CHARS: usize = 64;

/// Every mistake found in one group file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    file_name: String,
    list: Vec<Problem>,
    omitted: usize,
}

impl Problems {
    pub(super) fn new(file_name: &str, mut list: Vec<Problem>, omitted: usize) -> Self {
        list.sort_by_key(|problem| (problem.line, problem.column));
        Self { file_name: file_name.to_owned(), list, omitted }
    }

    /// The mistakes, at most [`MAX_PROBLEMS`] of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    /// How many mistakes there are, those not kept included. Never 0.
    pub fn count(&self) -> usize {
        self.list.len() + self.omitted
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.show(f, &self.file_name)?;
        }
        if self.omitted > 0 {
            write!(f, "\n… and {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One mistake and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, with the offending text.
    pub message: String,
    /// What to write instead; may be empty.
    pub suggestion: String,
    excerpt: String,
    indent: usize,
    width: usize,
}

impl Problem {
    fn show(&self, f: &mut fmt::Formatter<'_>, file_name: &str) -> fmt::Result {
        let Self { line, column, message, suggestion, excerpt, indent, width } = self;
        writeln!(f, "{file_name}:{line}:{column}: error: {message}")?;
        writeln!(f, "{line:>4} | {excerpt}")?;
        write!(f, "     | {:indent$}{}", "", "^".repeat(*width))?;
        if !suggestion.is_empty() {
            write!(f, " {suggestion}")?;
        }
        Ok(())
    }
}

/// The text of a file, with lines and columns for byte offsets.
pub(super) struct Source<'s> {
    text: &'s str,
    line_starts: Vec<usize>,
}

impl<'s> Source<'s> {
    pub(super) fn new(text: &'s str) -> Self {
        let after_newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(after_newlines.map(|(at, _)| at + 1)).collect();
        Self { text, line_starts }
    }

    /// The line, from 1, that holds a byte offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).max(1)
    }

    /// The text between two byte offsets, empty where they name none.
    pub(super) fn slice(&self, span: &Range<usize>) -> &'s str {
        self.text.get(span.clone()).unwrap_or("")
    }

    /// A problem at `span` (bytes); what goes past the end of its line is cut.
    pub(super) fn problem(
        &self,
        span: Range<usize>,
        message: String,
        suggestion: String,
    ) -> Problem {
        let start = self.floor_boundary(span.start);
        let end = self.floor_boundary(span.end).max(start);
        let line = self.line(start);
        let line_start = self.line_starts[line - 1];
        let rest = &self.text[line_start..];
        let text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');

        let column = self.text[line_start..start].chars().count();
        let line_chars = text.chars().count();
        let shift = if line_chars <= EXCERPT_CHARS { 0 } else { column.saturating_sub(40) };
        let excerpt: String = text.chars().skip(shift).take(EXCERPT_CHARS).map(printable).collect();
        let indent = column - shift;
        let room = excerpt.chars().count().saturating_sub(indent).max(1);
        let width = self.text[start..end].chars().count().clamp(1, room);
        let excerpt = excerpt.trim_end().to_owned();
        Problem { line, column: column + 1, message, suggestion, excerpt, indent, width }
    }

    fn floor_boundary(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// `text` in backquotes for a message: cut to a bounded length, and with
/// nothing in it that could steer a terminal.
pub(super) fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTE_CHARS).map(printable).collect();
    if text.chars().nth(QUOTE_CHARS).is_some() {
        quoted.push('…');
    }
    format!("`{quoted}`")
}

/// The known word nearest to a mistyped one, if any is near.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > QUOTE_CHARS {
        return None;
    }
    let near = known
        .into_iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(word, known), known))
        .filter(|(likeness, _)| *likeness > 0.5);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

fn printable(char: char) -> char {
    match char {
        '\t' => ' ',
        // Bidirectional overrides would show a line in another order than it is read.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        char if char.is_control() => '\u{fffd}',
        char => char,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shows_like_rustc() {
        let source = Source::new("a = 1\r\nunderly = [1]\r\n");
        let problem = source.problem(7..14, "unknown field".into(), "did you mean `x`?".into());
        let problems = Problems::new("group.toml", vec![problem], 3);
        assert_eq!(
            problems.to_string(),
            "group.toml:2:1: error: unknown field\n   2 | underly = [1]\n     | ^^^^^^^ did you mean \
             `x`?\n… and 3 more"
        );
        assert_eq!(problems.count(), 4);
    }

    #[test]
    fn long_lines_are_windowed_and_controls_hidden() {
        let text = format!("{}\u{1b}[31mhere", "x".repeat(10_000));
        let source = Source::new(&text);
        let problem = source.problem(10_005..10_009, String::new(), String::new());
        assert_eq!(problem.column, 10_006);
        assert!(problem.excerpt.chars().count() <= EXCERPT_CHARS);
        assert!(!problem.excerpt.contains('\u{1b}'));
        assert_eq!(problem.excerpt.chars().skip(problem.indent).collect::<String>(), "here");
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("underly", ["name", "underlay"]), Some("underlay"));
        assert_eq!(nearest("zzz", ["name", "underlay"]), None);
    }

    proptest! {
        #[test]
        fn any_span_can_be_shown(text in "\\PC{0,40}(\n\\PC{0,40}){0,3}", a in 0..400usize, b in 0..400usize) {
            let problem = Source::new(&text).problem(a..b, String::new(), String::new());
            let shown = Problems::new("f", vec![problem], 0).to_string();
            prop_assert_eq!(shown.lines().count(), 3);
        }
    }
}
