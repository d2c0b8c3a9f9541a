//! `ping`, and what it found.

use super::{LabError, Namespace, Result, run::require_tool};
use std::net::IpAddr;

/// What `ping` found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Shortest round trip in milliseconds.
    pub min_ms: f64,
    /// Mean round trip in milliseconds.
    pub mean_ms: f64,
    /// Longest round trip in milliseconds.
    pub max_ms: f64,
}

/// Pings `target` from `namespace`, `count` times, 100 times a second.
///
/// # Errors
/// [`LabError::MissingTool`]; [`LabError::Command`] where no answer came.
pub fn ping(namespace: &Namespace, target: IpAddr, count: u32) -> Result<PingReport> {
    require_tool("ping", "iputils-ping")?;
    let (count, target) = (count.to_string(), target.to_string());
    let argv = ["ping", "-n", "-q", "-i", "0.01", "-W", "3", "-c", &count, &target];
    let output = namespace.exec(&argv)?.success()?;
    parse(&output.stdout).ok_or(LabError::Answer { command: output.command, answer: output.stdout })
}

/// The last two lines of iputils' `ping -q`.
fn parse(text: &str) -> Option<PingReport> {
    let counts = text.lines().find(|line| line.contains("packets transmitted"))?;
    let times = text.lines().find(|line| line.starts_with("rtt "))?;
    let mut counts = counts.split(", ").map(|part| part.split(' ').next()?.parse().ok());
    let (sent, received) = (counts.next()??, counts.next()??);
    let mut times = times.split(" = ").nth(1)?.split('/').map(|time| time.parse().ok());
    let (min_ms, mean_ms, max_ms) = (times.next()??, times.next()??, times.next()??);
    Some(PingReport { sent, received, min_ms, mean_ms, max_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_iputils() {
        let text = "PING 10.0.2.1 (10.0.2.1) 56(84) bytes of data.\n\n--- 10.0.2.1 ping statistics \
                    ---\n10 packets transmitted, 9 received, 10% packet loss, time 91ms\n\
                    rtt min/avg/max/mdev = 0.110/0.250/0.900/0.200 ms\n";
        let report = parse(text).unwrap();
        assert_eq!((report.sent, report.received), (10, 9));
        assert_eq!((report.min_ms, report.mean_ms, report.max_ms), (0.110, 0.250, 0.900));
        assert_eq!(parse("10 packets transmitted, 0 received, 100% packet loss\n"), None);
        assert_eq!(parse(""), None);
    }
}
