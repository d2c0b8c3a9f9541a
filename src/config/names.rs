//! Names that the kernel must accept: interfaces and VLANs.

use std::{fmt, str::FromStr};

/// Longest interface name in bytes: `IFNAMSIZ` (`include/uapi/linux/if.h`)
/// less its terminating zero.
pub const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// Name of a network interface: 1 to 15 printable ASCII characters without
/// space, `/`, `:` and `%`.
///
/// The kernel (`dev_valid_name`, `net/core/dev.c`) refuses `/`, `:`, white
/// space, `.` and `..`; `%` makes a template of a TAP's name. Bytes beyond
/// ASCII, which it would take, are refused here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidInterfaceName::Empty);
        }
        if let Some(char) =
            text.chars().find(|char| !char.is_ascii_graphic() || matches!(char, '/' | ':' | '%'))
        {
            return Err(InvalidInterfaceName::Character(char));
        }
        if text.len() > MAX_INTERFACE_NAME_BYTES {
            return Err(InvalidInterfaceName::TooLong(text.len()));
        }
        if matches!(text, "." | "..") {
            return Err(InvalidInterfaceName::Dots);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text can't name an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterfaceName {
    /// No text at all.
    #[error("it is empty")]
    Empty,
    /// A character that no interface name may have.
    #[error("it contains {0:?}")]
    Character(char),
    /// More than [`MAX_INTERFACE_NAME_BYTES`].
    #[error("it has {0} characters, the kernel takes at most {MAX_INTERFACE_NAME_BYTES}")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("`.` and `..` name directories")]
    Dots,
}

/// VLAN identifier of an 802.1Q tag, 1 to 4094 (IEEE 802.1Q-2018, table 9-2:
/// 0 is a priority tag, 4095 is reserved).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VlanId(u16);

impl VlanId {
    /// The smallest identifier.
    pub const MIN: u16 = 1;
    /// The largest identifier.
    pub const MAX: u16 = 4094;

    /// The identifier as a number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = InvalidVlanId;

    fn try_from(id: u16) -> Result<Self, Self::Error> {
        if (Self::MIN..=Self::MAX).contains(&id) { Ok(Self(id)) } else { Err(InvalidVlanId(id)) }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that no VLAN may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VLAN, they go from {min} to {max}", min = VlanId::MIN, max = VlanId::MAX)]
pub struct InvalidVlanId(pub u16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_that_the_kernel_takes() {
        for good in ["eth0", "br-app", "enp0s31f6.100", "123456789012345", "a"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        use InvalidInterfaceName as E;
        for (bad, error) in [
            ("", E::Empty),
            ("1234567890123456", E::TooLong(16)),
            ("a/b", E::Character('/')),
            ("a b", E::Character(' ')),
            ("a:1", E::Character(':')),
            ("tap%d", E::Character('%')),
            ("é", E::Character('é')),
            ("..", E::Dots),
        ] {
            assert_eq!(bad.parse::<InterfaceName>(), Err(error), "{bad:?}");
        }
    }

    #[test]
    fn vlan_ids() {
        for id in 0..=u16::MAX {
            assert_eq!(VlanId::try_from(id).is_ok(), (1..4095).contains(&id));
        }
    }
}
