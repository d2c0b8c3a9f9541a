//! Whole nodes over a simulated network.

mod hostile;
mod schedules;
mod simulation;
mod traffic;
mod tunnels;
