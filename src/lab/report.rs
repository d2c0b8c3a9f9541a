//! What the tour found, for people and for programs.

use serde::Serialize;
use std::{collections::BTreeMap, io::IsTerminal};

/// The tour's findings, in order.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether every step went well.
    pub ok: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step of the tour.
#[derive(Debug, Serialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// Whether it went well.
    pub ok: bool,
    /// What was found, in words.
    pub findings: Vec<String>,
    /// What was measured; units are the last word of each name.
    pub figures: BTreeMap<&'static str, f64>,
}

impl Step {
    /// A step that went well, with a first finding.
    pub(super) fn found(finding: impl Into<String>) -> Self {
        Self {
            name: String::new(),
            ok: true,
            findings: vec![finding.into()],
            figures: BTreeMap::new(),
        }
    }

    /// Adds a finding.
    pub(super) fn and(mut self, finding: impl Into<String>) -> Self {
        self.findings.push(finding.into());
        self
    }

    /// Adds a figure.
    pub(super) fn figure(mut self, name: &'static str, value: f64) -> Self {
        self.figures.insert(name, value);
        self
    }

    /// Marks the step as failed unless `condition` holds.
    pub(super) fn provided(mut self, condition: bool) -> Self {
        self.ok &= condition;
        self
    }
}

/// Prints steps while they happen.
#[derive(Debug)]
pub(super) struct Printer {
    silent: bool,
    colour: bool,
}

impl Printer {
    pub(super) fn new(silent: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { silent, colour }
    }

    pub(super) fn text(&self, text: &str) {
        if !self.silent {
            println!("{text}");
        }
    }

    pub(super) fn step(&self, step: &Step) {
        self.text(&render(step, self.colour));
    }
}

fn render(step: &Step, colour: bool) -> String {
    let (mark, code) = if step.ok { ("✓", "32") } else { ("✗", "31") };
    let mark = if colour { format!("\x1b[{code}m{mark}\x1b[0m") } else { mark.to_owned() };
    let findings = step.findings.join("\n").replace('\n', "\n      ");
    format!("  {mark} {}\n      {findings}", step.name)
}

/// `1.4 Gbit/s`, `870 Mbit/s`.
pub(super) fn rate(bits_per_second: f64) -> String {
    if bits_per_second >= 1e9 {
        format!("{:.1} Gbit/s", bits_per_second / 1e9)
    } else {
        format!("{:.0} Mbit/s", bits_per_second / 1e6)
    }
}

/// `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([grouped(7), grouped(123), grouped(1_234_567)], ["7", "123", "1,234,567"]);
        assert_eq!([rate(1.44e9), rate(8.7e8)], ["1.4 Gbit/s", "870 Mbit/s"]);
    }

    #[test]
    fn a_step_reads_well() {
        let mut step = Step::found("one").and("two\nthree").provided(1 > 2);
        step.name = "ping".into();
        assert_eq!(render(&step, false), "  ✗ ping\n      one\n      two\n      three");
        assert!(render(&step, true).starts_with("  \x1b[31m✗\x1b[0m ping"));
    }
}
