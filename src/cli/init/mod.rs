//! `landbridge init`: from a few flags or answers to a group file and the keys.
#![allow(clippy::disallowed_methods)]

pub mod plan;
pub mod questions;
pub mod write;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{anyhow, bail};

use self::plan::{AttachmentPlan, NetworkPlan, Plan, SitePlan};
use super::{UsageError, status::print};
use crate::{
    config,
    io::random::OsRandom,
    session::keys::{PresharedKey, PrivateKey},
};

/// Makes the group file and the keys of a new group
///
/// Writes one group file, the same for all appliances, and a private key for
/// each. On a terminal it asks for what the flags leave open. It overwrites
/// nothing and changes nothing else on this host.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Arguments {
    /// Name of the group [default: the names of the sites]
    #[arg(long)]
    name: Option<String>,
    /// A site and where the others reach its appliance; repeat for each site
    #[arg(long = "site", value_name = "NAME=ADDRESS[:PORT]")]
    sites: Vec<SitePlan>,
    /// A network to stretch, with an id of your choice (1 to 16777215); repeat
    /// for more [default: 100:lan]
    #[arg(long = "network", value_name = "ID:NAME")]
    networks: Vec<NetworkPlan>,
    /// Where a site's LAN is met: bridge:br0, tap:app0 or nic:eth1 (or nic:eth1:VLAN);
    /// repeat for each site and network
    #[arg(long = "attach", value_name = "SITE:NETWORK=KIND:INTERFACE")]
    attachments: Vec<AttachmentPlan>,
    /// Make a preshared key, too: recorded traffic then stays secret even from
    /// one who breaks the key exchange some day
    #[arg(long)]
    psk: bool,
    /// Directory for the files; made if it isn't there
    #[arg(long, value_name = "DIR", default_value = "landbridge")]
    out: PathBuf,
    /// Overwrite files of an earlier init: their keys are lost
    #[arg(long)]
    force: bool,
}

const EXAMPLE: &str = "\
Example:
  landbridge init --site east=192.0.2.11 --site west=198.51.100.7 --network 100:app \\
      --attach east:app=bridge:br0 --attach west:app=nic:eth1:100";

/// Runs `landbridge init`.
///
/// # Errors
/// If flags are missing and nobody can be asked, if they don't make a valid
/// group file, or if a file can't be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        name: arguments.name.clone(),
        sites: arguments.sites.clone(),
        networks: arguments.networks.clone(),
        attachments: arguments.attachments.clone(),
        preshared: arguments.psk,
    };
    let plan = match plan.missing() {
        None => plan.with_defaults(),
        Some(_) if io::stdin().is_terminal() && io::stderr().is_terminal() => {
            questions::complete(plan, &mut io::stdin().lock(), &mut io::stderr())?
        }
        Some(missing) => bail!(UsageError(format!("init: {missing}\n\n{EXAMPLE}"))),
    };

    let keys: Vec<PrivateKey> =
        plan.sites.iter().map(|_| PrivateKey::generate(&mut OsRandom)).collect();
    let preshared = plan.preshared.then(|| PresharedKey::generate(&mut OsRandom));
    let public_keys: Vec<_> = keys.iter().map(PrivateKey::public).collect();
    let text = plan.group_file(&public_keys);
    config::parse(&text, write::GROUP_FILE).map_err(|problems| {
        anyhow!("the flags or answers make no valid group, nothing was written:\n{problems}")
    })?;

    let mut files = vec![write::group_file(text)];
    files.extend(preshared.as_ref().map(write::preshared_key_file));
    for (site, key) in plan.sites.iter().zip(&keys) {
        files.push(write::private_key_file(&site.appliance(), key));
    }
    write::write_all(&arguments.out, &files, arguments.force)?;
    print(&plan.next_steps(&arguments.out, &files))
}
