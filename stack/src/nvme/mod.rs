//! NVMe: what goes over the wire ([`bits`]), the driver of a local controller, and the controller that the target
//! plays, over TCP.
//!
//! Sections without a name are those of the NVM Express Base Specification 2.0; "NVM" stands before those of the NVM
//! Command Set Specification 1.0, "PCIe" and "TCP" before those of the PCIe and TCP Transport Specifications 1.0.

pub mod bits;
pub mod controller;
pub mod driver;
pub mod tcp;
