//! Processor time and memory, as /proc tells.

use anyhow::{Context, Result};
use landbridge::lab::Process;
use std::{fs, thread, time::Duration};

/// Seconds in which any core of the machine was busy, soft interrupts included,
/// since it was started (proc_stat(5)).
pub(super) fn machine_seconds() -> Result<f64> {
    let stat = read("/proc/stat")?;
    let ticks = busy_ticks(&stat).context("/proc/stat is not as proc_stat(5) says")?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Seconds that the processes ran, in user mode and in the kernel on their behalf
/// (proc_pid_stat(5)).
pub(super) fn process_seconds(processes: &[Process]) -> Result<f64> {
    let mut ticks = 0;
    for id in with_descendants(processes) {
        let stat = read(&format!("/proc/{id}/stat"))?;
        ticks += process_ticks(&stat).context("/proc/PID/stat is not as proc_pid_stat(5) says")?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory of the largest of the processes, bytes (VmRSS).
pub(super) fn largest_resident_bytes(processes: &[Process]) -> Result<Option<u64>> {
    let mut largest = None;
    for id in with_descendants(processes) {
        let status = read(&format!("/proc/{id}/status"))?;
        largest = largest.max(Some(resident_kib(&status).context("there is no VmRSS")? << 10));
    }
    Ok(largest)
}

/// The share of all cores that was busy during one second, 0 to 1.
pub(crate) fn busy_share() -> Result<f64> {
    let before = machine_seconds()?;
    thread::sleep(Duration::from_secs(1));
    Ok((machine_seconds()? - before) / crate::topology::machine_cores() as f64)
}

/// Their ids and those of what they have started: some daemons leave the work to a
/// child.
fn with_descendants(processes: &[Process]) -> Vec<u32> {
    let mut ids: Vec<u32> = processes.iter().map(Process::id).collect();
    let mut next = 0;
    while let Some(id) = ids.get(next) {
        let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        let children = threads
            .map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
        let children: Vec<u32> = children
            .flat_map(|text| text.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>())
            .collect();
        ids.extend(children);
        next += 1;
    }
    ids
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// USER_HZ, part of the kernel's interface to programs (include/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// user, nice, system, irq and softirq; idle, iowait and steal are not work, and
/// guest is part of user.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|field| ticks.get(*field)).sum()
}

fn process_ticks(stat: &str) -> Option<u64> {
    // The name may contain spaces and brackets; the state follows it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11).map(|word| word.parse::<u64>().ok());
    Some(fields.next()?? + fields.next()??)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(super) fn self_check() {
    assert_eq!(busy_ticks("cpu  1 20 300 4000 5 60 700 8 9 10\ncpu0 1"), Some(1081));
    assert_eq!(busy_ticks("intr 1"), None);
    let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1 0 99";
    assert_eq!(process_ticks(stat), Some(175));
    assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    8192 kB\n"), Some(8192));
}
