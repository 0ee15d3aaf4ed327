//! Regions that no algorithm left, each with its own answer; and garbage.

use super::Layout;
use super::packed::Packed;
use super::split::Split;
use proptest::prelude::*;
use runtime::Window;
use stack::virtio::inflight::packed::PackedInflight;
use stack::virtio::inflight::{InflightError, SplitInflight};
use stack::virtio::packed::Position;
use std::sync::atomic::Ordering::Relaxed;
use tests::flat::{self, FlatWindow};

const RING: u16 = 8;

fn recover_split(split: &Split, used: u16) -> Result<Vec<u16>, InflightError> {
    SplitInflight::recover(split.shared().region, RING, used).map(|recovered| recovered.heads)
}

fn recover_packed(packed: &Packed) -> Result<Vec<u16>, InflightError> {
    let shared = packed.shared();
    let recovered = PackedInflight::recover(shared.region, &shared.areas.descriptors, RING, Position::START)?;
    Ok(recovered.requests.iter().map(|request| request.head).collect())
}

#[test]
fn impossible_split_regions_are_named() {
    let recover = |change: &dyn Fn(&FlatWindow)| {
        let split = Split::new(RING, 10);
        split.begin();
        change(&split.shared().region);
        recover_split(&split, 10)
    };
    assert_eq!(recover(&|region| region.store_u16(8, 2, Relaxed)), Err(InflightError::Version(2)));
    let size = InflightError::Size { found: 16, ring: 8 };
    assert_eq!(recover(&|region| region.store_u16(10, 16, Relaxed)), Err(size));
    assert_eq!(recover(&|region| region.store_u16(14, 1, Relaxed)), Err(InflightError::Batch(9)));
    let outside = |region: &FlatWindow| {
        region.store_u16(14, 9, Relaxed);
        region.store_u16(12, 8, Relaxed);
    };
    assert_eq!(recover(&outside), Err(InflightError::BatchList(8)));
    let cycle = |region: &FlatWindow| region.store_u16(14, 8, Relaxed);
    assert_eq!(recover(&cycle), Err(InflightError::BatchList(0)));
    let flag = InflightError::Flag { head: 1, found: 2 };
    assert_eq!(recover(&|region| region.store_u8(16 + 16, 2, Relaxed)), Err(flag));
    let twice = |region: &FlatWindow| {
        region.store_u8(16, 1, Relaxed);
        region.store_u8(32, 1, Relaxed);
    };
    assert_eq!(recover(&twice), Err(InflightError::Counter(0)));
    let end = |region: &FlatWindow| {
        region.store_u8(16, 1, Relaxed);
        region.store_u64(24, u64::MAX, Relaxed);
    };
    assert_eq!(recover(&end), Err(InflightError::Counter(u64::MAX)));
}

#[test]
fn impossible_packed_regions_are_named() {
    // Two requests are in flight: entries 0 and 1, and entry 2.
    let recover = |change: &dyn Fn(&FlatWindow)| {
        let mut packed = Packed::new(RING, 0);
        packed.offer(0, 2);
        packed.offer(1, 1);
        let (mut life, _) = packed.begin();
        assert_eq!((packed.take(&mut life), packed.take(&mut life)), (Some(0), Some(1)));
        change(&packed.shared().region);
        recover_packed(&packed)
    };
    let entry = |index: u64| 32 + 32 * index;
    assert_eq!(recover(&|_| ()), Ok(vec![0, 2]));
    assert_eq!(recover(&|region| region.store_u16(8, 7, Relaxed)), Err(InflightError::Version(7)));
    let size = InflightError::Size { found: 9, ring: 8 };
    assert_eq!(recover(&|region| region.store_u16(10, 9, Relaxed)), Err(size));
    // The used position: beyond the ring, or on no lap.
    assert_eq!(recover(&|region| region.store_u16(18, 8, Relaxed)), Err(InflightError::Position(8)));
    assert_eq!(recover(&|region| region.store_u8(20, 2, Relaxed)), Err(InflightError::Position(0)));
    // The free list: beyond the table, into itself, into a request.
    assert_eq!(recover(&|region| region.store_u16(14, 9, Relaxed)), Err(InflightError::FreeList(9)));
    let cycle = |region: &FlatWindow| region.store_u16(entry(7) + 2, 3, Relaxed);
    assert_eq!(recover(&cycle), Err(InflightError::FreeList(3)));
    let into = |region: &FlatWindow| region.store_u16(entry(7) + 2, 1, Relaxed);
    assert_eq!(recover(&into), Err(InflightError::FreeList(3)));
    // A request's entries: those of another, its end elsewhere, none, beyond the table.
    let shared = |region: &FlatWindow| region.store_u16(entry(0) + 2, 2, Relaxed);
    assert_eq!(recover(&shared), Err(InflightError::Request(0)));
    let end = |region: &FlatWindow| region.store_u16(entry(0) + 4, 0, Relaxed);
    assert_eq!(recover(&end), Err(InflightError::Request(0)));
    let none = |region: &FlatWindow| region.store_u16(entry(0) + 6, 0, Relaxed);
    assert_eq!(recover(&none), Err(InflightError::Request(0)));
    let beyond = |region: &FlatWindow| region.store_u16(entry(0) + 2, 8, Relaxed);
    assert_eq!(recover(&beyond), Err(InflightError::Request(0)));
    // Entries that are nobody's.
    let lost = |region: &FlatWindow| region.store_u8(entry(2), 0, Relaxed);
    assert_eq!(recover(&lost), Err(InflightError::Entries(1)));
    let flag = InflightError::Flag { head: 2, found: 3 };
    assert_eq!(recover(&|region| region.store_u8(entry(2), 3, Relaxed)), Err(flag));
    let twice = |region: &FlatWindow| region.store_u64(entry(2) + 8, 0, Relaxed);
    assert_eq!(recover(&twice), Err(InflightError::Counter(0)));
    let end = |region: &FlatWindow| region.store_u64(entry(2) + 8, u64::MAX, Relaxed);
    assert_eq!(recover(&end), Err(InflightError::Counter(u64::MAX)));
}

/// A batch of three was published and none of its flags cleared: all three are, not the last one only.
#[test]
fn a_whole_split_batch_is_cleared() {
    let mut split = Split::new(RING, 0);
    (0..3).for_each(|request| assert!(split.offer(request, 1)));
    let (mut life, _) = split.begin();
    (0..3).for_each(|request| assert_eq!(split.take(&mut life), Some(request)));
    let memory = flat::snapshot();
    let (stores, ()) = flat::count_stores(|| split.give_back(&mut life, &[0, 1, 2]));
    flat::restore(&memory);
    let (mut life, _) = split.begin();
    // The last four stores clear three flags and set the region's used index.
    assert!(flat::die_at(stores - 4, || split.give_back(&mut life, &[0, 1, 2])).is_none());
    assert_eq!(split.visible(), [0, 1, 2]);
    assert!(split.begin().1.is_empty());
}

/// Tracking that begins on a ring with a past does not take it for something to be finished.
#[test]
fn a_fresh_region_on_a_ring_that_is_not_at_its_beginning() {
    let split = Split::new(RING, 1000);
    assert!(split.begin().1.is_empty() && split.begin().1.is_empty());
    assert_eq!(split.shared().region.load_u16(14, Relaxed), 1000);
    let packed = Packed::new(RING, 13);
    assert!(packed.begin().1.is_empty() && packed.begin().1.is_empty());
    let used = packed.shared().region.load_u64(16, Relaxed);
    assert_eq!(used, 0x0000_0005_0005, "index 5 twice, on the lap with wrap counter 0");
}

fn garbage(len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => Just(1), 2 => 2_u8..9, 1 => any::<u8>()], len)
}

/// An error, and nothing was touched; or requests of the ring, each once.
fn refused_or_harmless(before: &[u8], result: Result<Vec<u16>, InflightError>) -> Result<(), TestCaseError> {
    match result {
        Ok(mut heads) => {
            let count = heads.len();
            heads.sort_unstable();
            heads.dedup();
            prop_assert!(heads.len() == count && heads.iter().all(|head| *head < RING));
        }
        Err(_) => prop_assert!(flat::snapshot() == before, "a refused region is left as it was"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn garbage_in_a_split_region(garbage in garbage(16 + 16 * 8), used in any::<u16>(), plausible in any::<bool>()) {
        let split = Split::new(RING, used);
        let region = split.shared().region;
        region.write(0, &garbage);
        if plausible {
            region.store_u16(8, 1, Relaxed);
            region.store_u16(10, RING, Relaxed);
            region.store_u16(14, used.wrapping_sub(u16::from(garbage[0] % 10)), Relaxed);
        }
        let before = flat::snapshot();
        refused_or_harmless(&before, recover_split(&split, used))?;
    }

    /// Some bytes of a region that tracks two requests are others.
    #[test]
    fn garbage_in_a_packed_region(
        wild in prop::option::of(garbage(32 + 32 * 8)),
        changes in prop::collection::vec((0_usize..32 + 32 * 8, 0_u8..10), 0..6),
        ring in prop::collection::vec((0_u64..128, any::<u8>()), 0..4),
    ) {
        let mut packed = Packed::new(RING, 5);
        packed.offer(0, 3);
        packed.offer(1, 1);
        let (mut life, _) = packed.begin();
        packed.take(&mut life);
        packed.take(&mut life);
        let shared = packed.shared();
        if let Some(wild) = wild {
            shared.region.write(0, &wild);
            shared.region.store_u16(8, 1, Relaxed);
            shared.region.store_u16(10, RING, Relaxed);
        }
        for (at, byte) in changes {
            shared.region.write(at as u64, &[byte]);
        }
        for (at, byte) in ring {
            shared.areas.descriptors.write(at, &[byte]);
        }
        let before = flat::snapshot();
        refused_or_harmless(&before, recover_packed(&packed))?;
    }
}
