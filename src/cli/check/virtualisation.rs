//! What a virtual switch must let pass so that a virtual machine can bridge:
//! frames to and from MAC addresses other than the machine's own.

use std::{fs, path::Path};

use super::Finding;

/// What tells where this host runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// DMI `sys_vendor`.
    pub vendor: String,
    /// DMI `product_name`.
    pub product: String,
    /// Whether the processor says that a hypervisor is below (`/proc/cpuinfo`).
    pub hypervisor_flag: bool,
}

impl Facts {
    /// Reads them below `root`; what isn't there stays empty.
    pub fn gather(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let hypervisor_flag = read("proc/cpuinfo")
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
        Self {
            vendor: read("sys/class/dmi/id/sys_vendor").trim().to_owned(),
            product: read("sys/class/dmi/id/product_name").trim().to_owned(),
            hypervisor_flag,
        }
    }
}

/// What a host that is a virtual machine needs from what it runs on.
pub fn hints(facts: &Facts) -> Vec<Finding> {
    let vendor = facts.vendor.to_ascii_lowercase();
    let product = facts.product.to_ascii_lowercase();
    let by =
        |names: &[&str]| names.iter().any(|name| vendor.contains(name) || product.contains(name));
    let (platform, fix) = if by(&["vmware"]) {
        ("VMware", VMWARE)
    } else if by(&["amazon", "ec2"]) {
        ("Amazon EC2", CLOUD)
    } else if by(&["google"]) {
        ("Google Cloud", CLOUD)
    } else if by(&["microsoft"]) && by(&["virtual"]) {
        ("Hyper-V or Azure", HYPER_V)
    } else if by(&["innotek", "virtualbox"]) {
        ("VirtualBox", VIRTUALBOX)
    } else if by(&["xen"]) {
        ("Xen", GENERIC)
    } else if by(&["qemu", "kvm", "proxmox", "openstack", "red hat"]) {
        ("QEMU/KVM", KVM)
    } else if facts.hypervisor_flag {
        ("an unknown hypervisor", GENERIC)
    } else {
        return Vec::new();
    };
    vec![Finding::hint(
        format!(
            "this host is a virtual machine on {platform}: its virtual switch must let frames of \
             other hosts' MAC addresses in and out"
        ),
        fix,
    )]
}

const VMWARE: &str = "\
in the port group's security policy accept promiscuous mode, forged transmits and MAC changes
on a distributed switch (6.7 or later) MAC learning with forged transmits replaces promiscuous mode
with two uplinks and promiscuous mode, set Net.ReversePathFwdCheckPromisc=1 on the ESXi host";

const HYPER_V: &str = "\
on Hyper-V: Set-VMNetworkAdapter -VMName NAME -MacAddressSpoofing On
in Azure the LAN of other machines can't be bridged: use `tap` there";

const CLOUD: &str = "\
the cloud's own network carries no foreign MAC addresses: it can't be bridged, use `tap` there
for the underlay, allow UDP to the port; for routed traffic behind, switch source/destination check off";

const VIRTUALBOX: &str = "\
VBoxManage modifyvm NAME --nic-promisc2 allow-all (2 is the number of the adapter)";

const KVM: &str = "\
libvirt: no `clean-traffic` or `no-mac-spoofing` filter on the interface, and a Linux bridge below it
a macvtap below needs trustGuestRxFilters='yes' and mode passthrough; Proxmox: firewall MAC filter off
OpenStack: openstack port set --disable-port-security --no-security-group PORT";

const GENERIC: &str = "\
allow promiscuous mode, forged transmits and MAC changes (each product has its words for it)";

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(vendor: &str, product: &str, hypervisor_flag: bool) -> String {
        let facts = Facts { vendor: vendor.into(), product: product.into(), hypervisor_flag };
        hints(&facts).first().map(|hint| hint.message.clone()).unwrap_or_default()
    }

    #[test]
    fn platforms_by_what_dmi_says() {
        for (vendor, product, expected) in [
            ("VMware, Inc.", "VMware Virtual Platform", "VMware"),
            ("Microsoft Corporation", "Virtual Machine", "Hyper-V"),
            ("innotek GmbH", "VirtualBox", "VirtualBox"),
            ("QEMU", "Standard PC (Q35 + ICH9, 2009)", "QEMU/KVM"),
            ("Amazon EC2", "m5.large", "Amazon"),
            ("Google", "Google Compute Engine", "Google"),
            ("Xen", "HVM domU", "Xen"),
        ] {
            assert!(platform(vendor, product, true).contains(expected), "{vendor}");
        }
        assert!(platform("", "", true).contains("an unknown hypervisor"));
        assert_eq!(platform("Dell Inc.", "PowerEdge R650", false), "");
        assert_eq!(platform("Microsoft Corporation", "Surface Pro", false), "");
    }

    #[test]
    fn facts_from_files() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Facts::gather(root.path()), Facts::default());
        fs::create_dir_all(root.path().join("sys/class/dmi/id")).unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(root.path().join("sys/class/dmi/id/sys_vendor"), "QEMU\n").unwrap();
        fs::write(root.path().join("proc/cpuinfo"), "flags\t\t: fpu hypervisor aes\n").unwrap();
        let facts = Facts::gather(root.path());
        assert_eq!((facts.vendor.as_str(), facts.hypervisor_flag), ("QEMU", true));
    }
}
