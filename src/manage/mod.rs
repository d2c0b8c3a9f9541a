//! What an operator sees: status, MAC tables, counters, logs, service manager.
//!
//! | module | core or shell | what is in it |
//! |---|---|---|
//! | [`model`] | core | what an appliance tells about itself, as stable JSON |
//! | [`render`] | core | the same as text for a terminal |
//! | [`units`] | core | bytes, rates and durations for people |
//! | [`rate_limit`] | core | bounds what the network can write into the log |
//! | [`socket`] | shell | the management socket's server |
//! | [`client`] | shell | its client |
//! | [`log`] | shell | `tracing` for terminal and journal |
//! | [`notify`] | shell | systemd's `Type=notify` and watchdog |
//! | [`credential`] | shell | files handed over by systemd's `LoadCredential=` |

pub mod client;
pub mod credential;
pub mod log;
pub mod model;
pub mod notify;
pub mod rate_limit;
pub mod render;
pub mod socket;
pub mod units;
