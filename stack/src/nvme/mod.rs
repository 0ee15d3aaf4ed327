//! NVMe: what goes over the wire ([`bits`]), and the driver of a local controller.
//!
//! Sections without a name are those of the NVM Express Base Specification 2.0; "NVM" stands before those of the NVM
//! Command Set Specification 1.0, "PCIe" before those of the PCIe Transport Specification 1.0.

pub mod bits;
pub mod driver;
