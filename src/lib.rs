//! Landbridge stretches Ethernet networks between sites over any IP network.
//!
//! # Core and shell
//!
//! The **core** is pure: bytes, tables and state machines. It takes `now`,
//! returns what to do, and owns no socket, clock, thread or randomness. The
//! **shell** ([`io`], [`cli`], [`lab`] and the socket half of [`manage`]) owns
//! every system call. The code that ships is therefore the code that runs in
//! unit tests, in the seeded simulator and under the fuzzers.
//!
//! | module | core or shell | what is in it |
//! |---|---|---|
//! | [`config`] | core | group file (TOML) → typed, validated [`config::Group`] |
//! | [`topology`] | core | the group as seen from one appliance: peers, networks, ports |
//! | [`wire`] | core | bytes only: Ethernet, datagrams, records, signals |
//! | [`offload`] | core | superframes: descriptor, checksums, segmentation |
//! | [`session`] | core | Noise handshake, AEAD, replay window, cookies |
//! | [`stream`] | core | the record stream: pack frames into datagrams and back |
//! | [`tunnel`] | core | lanes, paths, path MTU discovery |
//! | [`bridge`] | core | MAC table and forwarding policy |
//! | [`node`] | core | the sans-I/O whole: control plane and workers |
//! | [`io`] | shell | TAP, AF_PACKET, UDP, netlink, threads |
//! | [`manage`] | both | status model, its rendering, the management socket |
//! | [`cli`] | shell | one file per sub-command |
//! | [`lab`] | shell | hosts and appliances in network namespaces |

pub mod bridge;
pub mod cli;
pub mod config;
pub mod io;
pub mod lab;
pub mod manage;
pub mod node;
pub mod offload;
pub mod session;
pub mod stream;
pub mod time;
pub mod topology;
pub mod tunnel;
pub mod wire;
