//! Generic receive offload (GRO) in software.
