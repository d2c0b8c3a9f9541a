//! Landbridge side by side with what else stretches an Ethernet: throughput,
//! small frames, round trips, memory and loss, in network namespaces of this
//! machine. `scripts/bench` installs what it needs, builds it and runs it as root.
//!
//! Every round runs all carriers one after the other, each on a topology of its
//! own that is removed afterwards, so that a machine that is slower for a while
//! is so for all of them; the report has medians over the rounds.
#![allow(clippy::disallowed_methods)]

mod bar;
mod carriers;
mod measure;
mod report;
mod samples;
mod settings;
mod topology;

use anyhow::{Context, Result};
use carriers::Carrier;
use clap::Parser;
use landbridge::lab::{LabError, Run, check_interrupt, interrupt_on_signals};
use samples::{Cell, Samples};
use settings::Settings;
use std::{fs, process::ExitCode};
use topology::Topology;

fn main() -> ExitCode {
    // `cargo bench` without a name runs every bench, and says so by this flag.
    if std::env::args().any(|argument| argument == "--bench") {
        eprintln!("side_by_side is run by scripts/bench, as root");
        return ExitCode::SUCCESS;
    }
    samples::self_check();
    measure::self_check();
    match run(&Settings::parse().resolved()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings) -> Result<()> {
    landbridge::lab::require_root().map_err(|_| {
        anyhow::anyhow!("needs root: it makes network namespaces\n  try: as root, scripts/bench")
    })?;
    interrupt_on_signals().context("cannot listen to signals")?;
    Run::remove_stale(false)?;
    let run = Run::new("bench")?;
    let mut samples = Samples::default();
    let carriers = present(settings, &mut samples)?;
    let machine = report::Machine::examine();
    for round in 1..=settings.rounds {
        samples.note_busy_share(measure::busy_share()?);
        for underlay in &settings.underlays {
            for carrier in &carriers {
                let cell = Cell { round, underlay: *underlay, carrier: carrier.name };
                eprintln!("round {round}/{}, {underlay}: {}", settings.rounds, carrier.name);
                check_interrupt()?;
                if samples.gave_up(&cell) {
                    continue;
                }
                match measure_all(&run, settings, carrier, cell, &mut samples) {
                    Err(error) if is_interrupt(&error) => return Err(error),
                    Err(error) => {
                        eprintln!("  skipped: {error:#}");
                        samples.give_up(cell, format!("{error:#}"));
                    }
                    Ok(()) => {}
                }
            }
        }
    }
    if let Some(path) = &settings.json {
        let text = serde_json::to_string_pretty(&report::json(&machine, settings, &samples))?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{}", report::markdown(&machine, settings, &carriers, &samples));
    Ok(())
}

/// The carriers asked for whose programs are installed; says which are not.
fn present(settings: &Settings, samples: &mut Samples) -> Result<Vec<&'static Carrier>> {
    let mut present = Vec::new();
    for carrier in carriers::select(&settings.carriers)? {
        match (carrier.missing)(settings) {
            None => present.push(carrier),
            Some(what) => {
                eprintln!("{}: not measured, {what}", carrier.name);
                samples.note(format!("{}: not measured, {what}", carrier.name));
            }
        }
    }
    Ok(present)
}

/// One carrier on one underlay, once through all that is measured.
fn measure_all(
    run: &Run,
    settings: &Settings,
    carrier: &Carrier,
    cell: Cell,
    samples: &mut Samples,
) -> Result<()> {
    let topology = Topology::new(run, settings, cell.underlay, carrier)?;
    let mut daemons = carrier.start(&topology, settings)?;
    let outcome = measure::all(&topology, settings, carrier, &daemons, cell, samples);
    // A daemon that has ended explains better than what did not work then.
    for daemon in &mut daemons {
        if !daemon.is_running() && outcome.as_ref().is_err_and(|error| !is_interrupt(error)) {
            let last = daemon.stdout() + &daemon.stderr();
            anyhow::bail!(
                "a daemon has ended: {}",
                last.lines().last().unwrap_or("it said nothing")
            );
        }
    }
    outcome
}

fn is_interrupt(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LabError::Interrupted))
}
