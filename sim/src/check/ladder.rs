//! A drive that is well needs no rung of its driver's ladder: nothing is aborted, no controller is reset or given up but by
//! order, and no command fails for good, before a fault of a drive has struck. What the driver mends by itself (a doorbell
//! that was lost, an entry that it misread, a queue that it left in disorder) would else be seen by nobody: the load goes
//! on, a little later.

use super::Verdict;
use crate::faults::Fault;
use stack::reached::Reached;

/// Whether a point is a rung, or what leads to one.
const fn is_rung(point: Reached) -> bool {
    matches!(
        point,
        Reached::NvmeAbort
            | Reached::NvmeTimedOut
            | Reached::NvmeFatal
            | Reached::NvmeBroken
            | Reached::NvmeCommandFailed
            | Reached::NvmeUnsupported
            | Reached::NvmeRemoved
            | Reached::NvmeFunctionReset
            | Reached::NvmeRetried
            | Reached::NvmeIoFailed
    )
}

/// Whether the driver has nothing to mend yet: once a fault of a drive has struck, it may do what it has to.
pub(crate) fn is_judge(struck: &[Fault]) -> bool {
    !struck.iter().any(|fault| fault.kind.touches_drives())
}

/// Judges a point of the stack that was reached, after these faults.
pub(crate) fn judge(point: Reached, struck: &[Fault]) -> Verdict {
    if is_rung(point) && is_judge(struck) {
        return Err(format!("{} was reached, and nothing is wrong with any drive", point.name()));
    }
    Ok(())
}
