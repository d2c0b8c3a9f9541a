//! The record stream of a lane, in the manner of RFC 9347 (AGGFRAG): records
//! of any length are cut into datagrams of one size, small ones packed, big
//! ones fragmented. [`Packer`] is the sending end, [`Unpacker`] the receiving
//! one; neither knows keys, sockets or clocks.

mod packer;
mod unpacker;

pub use packer::Packer;
pub use unpacker::{HELD_MAX, HOLD_MAX, StreamEvent, StreamSink, Unpacker, WINDOW_MIN};

#[cfg(test)]
mod tests;
