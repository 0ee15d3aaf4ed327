//! A hostile NVMe controller: any bits of any register, of any completion, and of all that Identify and log pages bring may
//! be wrong, at any moment, and any event may be reported. The driver gives each request one end, lets the controller go
//! when it is asked to, never panics and never waits for ever, and no command names memory that is not mapped.

use proptest::collection::vec;
use proptest::prelude::*;
use runtime::Window;
use stack::nvme::bits::{AsyncEvent, LogPage};
use stack::nvme::driver::{Operation, Options, Standing};
use std::sync::Arc;
use std::time::Duration;
use tests::core::on_core;
use tests::nvme::fake::{Disk, Fake, Lie, Said};
use tests::nvme::rig::Rig;

/// Requests of a case.
const REQUESTS: u32 = 24;

/// What is wrong, mostly early, when the controller tells what it is; in whole fields more often than in single bits.
fn lies() -> impl Strategy<Value = Vec<Lie>> {
    let of = prop_oneof![Just(Said::Register), Just(Said::Completion), Just(Said::Data)];
    let at = prop_oneof![0..12_u32, 0..80_u32];
    let offset = prop_oneof![0..16_u16, 0..600_u16, 0..4096_u16];
    let bits = prop_oneof![
        any::<u64>(),
        any::<u8>().prop_map(u64::from),
        any::<u16>().prop_map(u64::from),
        (0..64_u32).prop_map(|bit| 1 << bit),
    ];
    let lie = (of, at, offset, bits).prop_map(|(of, at, offset, bits)| Lie { of, at, offset, bits });
    vec(lie, 0..8)
}

/// Lets a controller that lies so be driven for a while. Whether it was ready once.
fn drive(lies: Vec<Lie>, events: Vec<u32>, shadow: bool) -> bool {
    on_core(None, move |platform| {
        let fake = Arc::new(Fake::default());
        {
            let mut state = fake.state();
            state.disks.insert(2, Disk::new(12, 64));
            state.orders.lies = lies;
        }
        let options = Options {
            io_timeout: Duration::from_millis(150),
            admin_timeout: Duration::from_millis(200),
            shadow_doorbells: shadow,
            ..Options::default()
        };
        let mut rig = Rig::new(&platform, fake, options);
        rig.until("an end of the start", |rig| !matches!(rig.driver.standing(), Standing::Starting));
        let ready = rig.driver.standing() == Standing::Ready;
        let (memory, _mapping) = rig.memory(1 << 20);
        let mut channels: Vec<_> = (0..rig.driver.namespaces().len()).map(|at| rig.channel(at)).collect();
        for event in events {
            rig.fake.happen(AsyncEvent(event));
        }
        for page in [LogPage::Error, LogPage::Health, LogPage::Firmware] {
            rig.driver.read_log(rig.now, page);
        }
        for (at, channel) in channels.iter_mut().enumerate() {
            let block =
                u64::from(rig.driver.namespaces().get(at).map_or(4096, |namespace| namespace.block_size));
            for token in 0..REQUESTS {
                let operation = match token % 6 {
                    0 | 3 => Operation::Read,
                    1 => Operation::Write { fua: token % 4 == 1 },
                    2 => Operation::Flush,
                    4 => Operation::WriteZeroes { deallocate: true, fua: false },
                    _ => Operation::Deallocate,
                };
                // From one block to more pages than an entry holds, at odd places too.
                let len = if operation == Operation::Flush { 0 } else { block * (1 + u64::from(token)) };
                let window = memory.slice(4 * u64::from(token % 3), len).expect("inside");
                channel.submit(rig.now, token, operation, 0, len, &[window]);
            }
        }
        let mut ended = vec![Vec::new(); channels.len()];
        rig.until("the end of all requests", |rig| {
            for (channel, ended) in channels.iter_mut().zip(&mut ended) {
                channel.poll(rig.now, ended);
            }
            while rig.driver.take_report().is_some() {}
            ended.iter().all(|ended| ended.len() >= REQUESTS as usize)
        });
        for ended in &ended {
            let mut tokens: Vec<u32> = ended.iter().map(|ended| ended.token).collect();
            tokens.sort_unstable();
            assert!(tokens.into_iter().eq(0..REQUESTS), "each request ends once");
        }
        drop(channels);
        rig.driver.close();
        rig.until("the end", |rig| rig.driver.standing() == Standing::Closed);
        let wrongs = rig.fake.wrongs();
        assert!(wrongs.iter().all(|wrong| !wrong.contains("not mapped")), "{wrongs:?}");
        ready
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_controller_is_driven_or_given_up(
        lies in lies(),
        events in vec(any::<u32>(), 0..6),
        shadow in any::<bool>(),
    ) {
        drive(lies, events, shadow);
    }
}

#[test]
fn a_controller_that_says_the_truth_is_ready() {
    assert!(drive(Vec::new(), Vec::new(), true));
}
