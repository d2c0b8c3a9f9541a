//! Typed reading of TOML tables that reports every mistake and goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Range, RangeInclusive},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{MAX_PROBLEMS, Problem, Source, nearest, quote};

/// A value with its place in the text.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table with its place in the text.
#[derive(Clone)]
pub(super) struct Table<'t> {
    pub(super) entries: &'t DeTable<'t>,
    pub(super) span: Range<usize>,
    /// What people call it: its header.
    pub(super) place: &'static str,
}

/// A field that a table may have: its name and an example of its value.
#[derive(Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) example: &'static str,
}

/// Collects problems while a file is read. A method that returns `None` has
/// reported why, or the value is absent and optional.
pub(super) struct Reader<'s> {
    source: Source<'s>,
    problems: Vec<Problem>,
    omitted: usize,
    /// Lines with syntax errors: what is read from them means nothing.
    damaged_lines: BTreeSet<usize>,
    /// Line of the first use of everything that must be unique, by what it is.
    first_uses: BTreeMap<(&'static str, String), usize>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(text: &'s str) -> Self {
        Self {
            source: Source::new(text),
            problems: Vec::new(),
            omitted: 0,
            damaged_lines: BTreeSet::new(),
            first_uses: BTreeMap::new(),
        }
    }

    /// What was reported and how many more there were.
    pub(super) fn into_problems(self) -> (Vec<Problem>, usize) {
        (self.problems, self.omitted)
    }

    /// Whether nothing was reported so far.
    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn report(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        suggestion: impl Into<String>,
    ) {
        if self.damaged_lines.contains(&self.source.line(span.start)) {
            return;
        }
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(self.source.problem(span, message.into(), suggestion.into()));
        } else {
            self.omitted += 1;
        }
    }

    /// Reports something missing or not found, unless the file has syntax
    /// errors: what is missing may then be in the part that wasn't understood.
    pub(super) fn report_absence(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        suggestion: impl Into<String>,
    ) {
        if self.damaged_lines.is_empty() {
            self.report(span, message, suggestion);
        }
    }

    /// Reports the TOML parser's errors, one per line: the first says it best.
    /// A `}` that is missing makes one on each line that follows: those are one.
    pub(super) fn syntax_errors(&mut self, errors: &[toml::de::Error]) {
        let mut unclosed_until = None;
        for error in errors {
            let span = error.span().unwrap_or_default();
            let line = self.source.line(span.start);
            let message = error.message().replace('\n', ", ");
            let in_inline_table =
                message.contains("between key-value pairs") || message.contains("inline table");
            if in_inline_table && unclosed_until.is_some_and(|until| line <= until + 1) {
                unclosed_until = Some(line);
            } else if in_inline_table {
                unclosed_until = Some(line);
                self.report(span, message, "is a `}` missing above?");
            } else if message == "duplicate key" {
                let key = quote(self.source.slice(&span));
                self.report(span, format!("duplicate key {key}"), "");
            } else {
                self.report(span, message, "");
            }
            self.damaged_lines.insert(line);
        }
    }

    /// Reports fields that the table doesn't have.
    pub(super) fn known_fields(&mut self, table: &Table<'_>, known: &[Field]) {
        for key in table.entries.keys() {
            let name: &str = key.get_ref();
            if known.iter().any(|field| field.name == name) {
                continue;
            }
            let suggestion = match nearest(name, known.iter().map(|field| field.name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let names: Vec<_> = known.iter().map(|field| field.name).collect();
                    format!("it has: {}", names.join(", "))
                }
            };
            let message = format!("unknown field {} in {}", quote(name), table.place);
            self.report(key.span(), message, suggestion);
        }
    }

    /// A field that must be there.
    pub(super) fn required<'t>(
        &mut self,
        table: &Table<'t>,
        field: Field,
    ) -> Option<&'t Value<'t>> {
        let value = table.entries.get(field.name);
        // A misspelt one was reported already.
        let misspelt =
            table.entries.keys().any(|key| nearest(key.get_ref(), [field.name]).is_some());
        if value.is_none() && !misspelt {
            let message = format!("missing field `{}` in {}", field.name, table.place);
            let suggestion = format!("add `{} = {}`", field.name, field.example);
            self.report_absence(table.span.clone(), message, suggestion);
        }
        value
    }

    /// The tables of an array of tables; none where it isn't there.
    pub(super) fn tables<'t>(
        &mut self,
        parent: &Table<'t>,
        key: &str,
        place: &'static str,
    ) -> Vec<Table<'t>> {
        let Some(value) = parent.entries.get(key) else { return Vec::new() };
        let suggestion = format!("write {place} above each");
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type::<()>(value, "a list of tables", suggestion);
            return Vec::new();
        };
        items.iter().filter_map(|item| self.table(item, place, suggestion.clone())).collect()
    }

    /// A value that must be a table.
    pub(super) fn table<'t>(
        &mut self,
        value: &'t Value<'t>,
        place: &'static str,
        suggestion: impl Into<String>,
    ) -> Option<Table<'t>> {
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table { entries, span: value.span(), place }),
            _ => self.wrong_type(value, "a table", suggestion),
        }
    }

    pub(super) fn text<'t>(&mut self, value: &'t Value<'t>) -> Option<&'t str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {
                let written = self.source.slice(&value.span()).to_owned();
                self.wrong_type(value, "a string", format!("write \"{written}\""))
            }
            DeValue::Array(_) | DeValue::Table(_) => self.wrong_type(value, "a string", ""),
        }
    }

    pub(super) fn flag(&mut self, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            DeValue::String(text) if matches!(&**text, "true" | "false") => {
                self.wrong_type(value, "true or false", "leave out the quotes")
            }
            _ => self.wrong_type(value, "true or false", ""),
        }
    }

    /// A whole number in a range.
    pub(super) fn number(
        &mut self,
        value: &Value<'_>,
        what: &str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let (min, max) = (*range.start(), *range.end());
        let bounds = format!("write a number from {min} to {max}");
        let integer = match value.get_ref() {
            DeValue::Integer(integer) => integer,
            DeValue::String(text) if text.parse::<u32>().is_ok() => {
                return self.wrong_type(value, "a whole number", "leave out the quotes");
            }
            _ => return self.wrong_type(value, "a whole number", bounds),
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX);
        let fitting = u32::try_from(number).ok().filter(|number| range.contains(number));
        if fitting.is_none() {
            let written = quote(self.source.slice(&value.span()));
            self.report(value.span(), format!("{what} {written} is out of range"), bounds);
        }
        fitting
    }

    /// A list with at least one and at most `max` items.
    pub(super) fn list<'t>(
        &mut self,
        value: &'t Value<'t>,
        what: &str,
        max: usize,
    ) -> Option<&'t [Value<'t>]> {
        let Some(items) = value.get_ref().as_array() else {
            return self.wrong_type(value, "a list", "write it between [ and ]");
        };
        match items.len() {
            0 => self.report(value.span(), format!("{what} is empty"), "write at least one item"),
            count if count > max => {
                let message = format!("{what} has {count} items");
                self.report(value.span(), message, format!("at most {max} are supported"));
            }
            _ => return Some(items),
        }
        None
    }

    /// Reports the second and later uses of what must be unique in the group;
    /// whether this is the first.
    pub(super) fn unique(&mut self, what: &'static str, text: &str, span: Range<usize>) -> bool {
        let first = self.first_use(what, text.to_owned(), &span);
        if let Err(line) = first {
            let message =
                format!("{what} {} is used twice: first used at line {line}", quote(text));
            self.report(span, message, "each needs its own");
        }
        first.is_ok()
    }

    /// Remembers a use; the line of the first one if there was one already.
    pub(super) fn first_use(
        &mut self,
        what: &'static str,
        key: String,
        span: &Range<usize>,
    ) -> Result<(), usize> {
        use std::collections::btree_map::Entry;
        match self.first_uses.entry((what, key)) {
            Entry::Occupied(first) => Err(*first.get()),
            Entry::Vacant(place) => {
                place.insert(self.source.line(span.start));
                Ok(())
            }
        }
    }

    /// The line of the first use of something, if it was used.
    pub(super) fn used_at(&self, what: &'static str, key: &str) -> Option<usize> {
        self.first_uses.get(&(what, key.to_owned())).copied()
    }

    fn wrong_type<T>(
        &mut self,
        value: &Value<'_>,
        expected: &str,
        suggestion: impl Into<String>,
    ) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let message = format!("expected {expected}, found {found}");
        self.report(value.span(), message, suggestion);
        None
    }
}
