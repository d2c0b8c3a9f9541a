//! Asks on the terminal for what the flags left open.

use std::{
    fmt::Display,
    io::{self, BufRead, Write},
};

use super::plan::{
    AttachmentPlan, DEFAULT_NETWORK, KindPlan, NetworkPlan, Plan, SitePlan, parse_underlay,
    valid_name,
};

/// Completes a plan by asking.
///
/// # Errors
/// If the answers end before the plan is complete.
pub fn complete(
    mut plan: Plan,
    answers: &mut dyn BufRead,
    screen: &mut dyn Write,
) -> io::Result<Plan> {
    let mut dialogue = Dialogue { answers, screen };
    dialogue.say("This makes a group file and keys. Enter takes the value in [ ].")?;
    dialogue.sites(&mut plan.sites)?;
    if plan.networks.is_empty() {
        dialogue.say("\nThe network to stretch:")?;
        let name = dialogue.ask("  its name", Some(DEFAULT_NETWORK), valid_name)?;
        let id = dialogue.ask("  its id, 1 to 16777215", Some("100"), network_id)?;
        plan.networks.push(NetworkPlan { id, name });
    }
    dialogue.attachments(&mut plan)?;
    if !plan.preshared {
        plan.preshared = dialogue.ask("\nA preshared key, too? y or n", Some("y"), yes_or_no)?;
    }
    Ok(plan.with_defaults())
}

struct Dialogue<'d> {
    answers: &'d mut dyn BufRead,
    screen: &'d mut dyn Write,
}

impl Dialogue<'_> {
    fn sites(&mut self, sites: &mut Vec<SitePlan>) -> io::Result<()> {
        while sites.len() < 2 {
            self.say(&format!("\nSite {}:", sites.len() + 1))?;
            let suggested = ["east", "west"].into_iter().find(|name| !is_taken(name, sites));
            let name = self.ask("  its name", suggested, |text| {
                let name = valid_name(text)?;
                if is_taken(&name, sites) { Err(format!("{name} is there")) } else { Ok(name) }
            })?;
            let question = "  IP address where the others reach its appliance, :PORT if not 51840";
            let underlay = self.ask(question, None, parse_underlay)?;
            sites.push(SitePlan { name, underlay });
        }
        Ok(())
    }

    fn attachments(&mut self, plan: &mut Plan) -> io::Result<()> {
        self.say(
            "\nWhere is the LAN? bridge:NAME (a bridge that exists), nic:NAME or nic:NAME:VLAN (an \
             interface), tap:NAME (a TAP is made)",
        )?;
        for network in &plan.networks {
            for site in &plan.sites {
                let said = plan.attachments.iter().any(|at| {
                    let name = &at.network;
                    at.site == site.name
                        && (*name == network.name || *name == network.id.to_string())
                });
                if said {
                    continue;
                }
                let question = format!("  network {} at site {}", network.name, site.name);
                let kind: KindPlan = self.ask(&question, Some("bridge:br0"), str::parse)?;
                plan.attachments.push(AttachmentPlan {
                    site: site.name.clone(),
                    network: network.name.clone(),
                    kind,
                });
            }
        }
        Ok(())
    }

    /// Asks until the answer can be read.
    fn ask<T, E: Display>(
        &mut self,
        question: &str,
        default: Option<&str>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> io::Result<T> {
        loop {
            match default {
                Some(default) => write!(self.screen, "{question} [{default}]: ")?,
                None => write!(self.screen, "{question}: ")?,
            }
            self.screen.flush()?;
            let mut answer = String::new();
            if self.answers.read_line(&mut answer)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the answers ended early, nothing was written\n  try: landbridge init --help",
                ));
            }
            let answer = answer.trim();
            let answer = if answer.is_empty() { default.unwrap_or("") } else { answer };
            match read(answer) {
                Ok(value) => return Ok(value),
                Err(error) => self.say(&format!("    {error}"))?,
            }
        }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.screen, "{line}")
    }
}

fn is_taken(name: &str, sites: &[SitePlan]) -> bool {
    sites.iter().any(|site| site.name == name)
}

fn network_id(text: &str) -> Result<u32, &'static str> {
    let id = text.parse().ok().filter(|id| (1..1 << 24).contains(id));
    id.ok_or("write a number from 1 to 16777215")
}

fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err("write y or n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(plan: Plan, answers: &str) -> (io::Result<Plan>, String) {
        let mut screen = Vec::new();
        let plan = complete(plan, &mut answers.as_bytes(), &mut screen);
        (plan, String::from_utf8(screen).unwrap())
    }

    #[test]
    fn defaults_and_corrections() {
        let (plan, screen) = answer(
            Plan::default(),
            "\nhost\n192.0.2.1\neast\n\n192.0.2.2:7\n\nx\n5\n\nnic:eth1:9\nn\n",
        );
        let plan = plan.unwrap();
        assert_eq!(plan.name.as_deref(), Some("east-west"));
        assert_eq!(plan.sites[1], "west=192.0.2.2:7".parse().unwrap());
        assert_eq!(plan.networks, ["5:lan".parse().unwrap()]);
        let attachments = ["east:lan=bridge:br0", "west:lan=nic:eth1:9"];
        assert_eq!(plan.attachments, attachments.map(|text| text.parse().unwrap()));
        assert!(!plan.preshared);
        assert!(screen.contains("east is there"), "{screen}");
        assert!(screen.contains("\"host\" is no address"), "{screen}");
    }

    #[test]
    fn answers_that_end_early() {
        let (plan, _) = answer(Plan::default(), "east\n");
        assert_eq!(plan.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
