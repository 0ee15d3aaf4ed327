//! Suites that hold a platform to the contract of `runtime`, run over the real host and over the simulator: the only
//! proof that the simulator does not lie. Each is generic over a [`World`]; `conformance!` makes the tests of one.
//!
//! A test is an `async` function: a poller that is polled again until the future is ready. It runs as the process's
//! first poller on core 0, and has only the platform and what else its [`World`] gives.

pub mod files;
pub mod mailboxes;
pub mod net;
pub mod notifiers;
pub mod nvme;
pub mod nvme_tcp;
pub mod sleeping;
pub mod streams;
pub mod windows;

use runtime::{Constructor, CoreId, Handle, Instant, Listener, Platform, Poll, Poller, Stream};
use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

/// How long anything that a test waits for may take, on the world's clock.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place to run a process in, and what is around that process.
pub trait World: 'static {
    /// The platform under test.
    type Platform: Platform;

    /// Runs a process of `cores` cores, with this first poller on core 0, until that poller is done.
    fn run(cores: u16, first: Constructor<Self::Platform>);

    /// An absolute path where a socket can be, another one at every call.
    fn socket_path() -> String;

    /// Connects to a socket of the process, as another process would.
    fn connect(path: &str) -> runtime::Result<HandleOf<Self>>;

    /// The TCP of another host.
    fn another_host(platform: &Self::Platform) -> NetOf<Self>;

    /// The address of the process's host, as the other one reaches it.
    fn host_address(is_ipv6: bool) -> IpAddr;

    /// A new eventfd, as another process would make it, twice: two handles to the same one.
    fn eventfd() -> (HandleOf<Self>, HandleOf<Self>);

    /// Where a directory can be made.
    fn directory() -> Place;

    /// A payload file of `len` bytes, all zero.
    fn payload_file(len: u64) -> Place;
}

/// An absolute path, and what keeps the thing there.
pub struct Place {
    /// Where it is.
    pub path: String,
    /// Dropped when nobody needs it any more.
    pub keep: Box<dyn Any + Send>,
}

/// The handle type of a world.
pub type HandleOf<W> = <<W as World>::Platform as Platform>::Handle;
/// The TCP of a world.
pub type NetOf<W> = <<W as World>::Platform as Platform>::Net;
/// The TCP connection type of a world.
pub type TcpStreamOf<W> = <<W as World>::Platform as Platform>::TcpStream;
/// The stream type of a world.
pub type StreamOf<W> = <<W as World>::Platform as Platform>::Stream;

/// Runs a test in a world; its panic is the caller's.
pub fn run<W: World, F: Future<Output = ()> + 'static>(
    cores: u16,
    test: impl FnOnce(Task<W::Platform>) -> F + Send + 'static,
) {
    let failure: Failure = Arc::default();
    let theirs = failure.clone();
    W::run(cores, Box::new(move |platform| Box::new(TestPoller::new(platform, Some(theirs), test))));
    let failure = failure.lock().expect("nobody panics under the lock").take();
    if let Some(panic) = failure {
        resume_unwind(panic);
    }
}

/// Starts a part of a test on a core; it panics for itself.
pub fn spawn<P: Platform, F: Future<Output = ()> + 'static>(
    platform: &P,
    core: CoreId,
    part: impl FnOnce(Task<P>) -> F + Send + 'static,
) {
    platform.start(core, Box::new(move |platform| Box::new(TestPoller::new(platform, None, part))));
}

/// The panic of a test, on its way from the core to the test's thread.
type Failure = Arc<Mutex<Option<Box<dyn Any + Send>>>>;

/// Registers what may wake the core.
type Arm<P> = Box<dyn FnMut(&mut <P as Platform>::Wakes)>;

/// What a test's function has in hand.
pub struct Task<P: Platform> {
    /// The core's platform.
    pub platform: P,
    waiting: Rc<RefCell<Waiting<P>>>,
}

/// What the poller answers while the test waits.
struct Waiting<P: Platform> {
    /// When the wait has failed.
    until: Option<Instant>,
    arm: Option<Arm<P>>,
}

impl<P: Platform> Task<P> {
    /// Polls `ask` until it has something, without ever sleeping.
    pub async fn poll<T>(&self, what: &str, ask: impl FnMut() -> Option<T>) -> T {
        self.wait(what, ask, None).await
    }

    /// Lets the core sleep until `ask` has something; `arm` registers what wakes it then.
    pub async fn sleep<T>(
        &self,
        what: &str,
        ask: impl FnMut() -> Option<T>,
        arm: impl FnMut(&mut P::Wakes) + 'static,
    ) -> T {
        self.wait(what, ask, Some(Box::new(arm))).await
    }

    async fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>, mut arm: Option<Arm<P>>) -> T {
        let limit = self.platform.now().after(PATIENCE);
        std::future::poll_fn(|_| {
            let now = self.platform.now();
            if let Some(found) = ask() {
                *self.waiting.borrow_mut() = Waiting { until: None, arm: None };
                return std::task::Poll::Ready(found);
            }
            assert!(now < limit, "waited for {what} in vain");
            let mut waiting = self.waiting.borrow_mut();
            waiting.until = Some(limit);
            if let Some(arm) = arm.take() {
                waiting.arm = Some(arm);
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Lets the core sleep until a moment.
    pub async fn sleep_until(&self, moment: Instant) {
        std::future::poll_fn(|_| {
            let mut waiting = self.waiting.borrow_mut();
            if self.platform.now() >= moment {
                *waiting = Waiting { until: None, arm: None };
                return std::task::Poll::Ready(());
            }
            *waiting = Waiting { until: Some(moment), arm: Some(Box::new(|_| {})) };
            std::task::Poll::Pending
        })
        .await;
    }
}

/// A test, or a part of one, as a poller.
struct TestPoller<P: Platform> {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waiting: Rc<RefCell<Waiting<P>>>,
    failure: Option<Failure>,
}

impl<P: Platform> TestPoller<P> {
    fn new<F: Future<Output = ()> + 'static>(
        platform: P,
        failure: Option<Failure>,
        test: impl FnOnce(Task<P>) -> F,
    ) -> Self {
        let waiting = Rc::new(RefCell::new(Waiting { until: None, arm: None }));
        let future = Box::pin(test(Task { platform, waiting: waiting.clone() }));
        Self { future, waiting, failure }
    }
}

impl<P: Platform> Poller<P> for TestPoller<P> {
    fn poll(&mut self, _now: Instant) -> Poll {
        let mut context = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(&mut context)));
        match (polled, &self.failure) {
            (Ok(std::task::Poll::Ready(())), _) => Poll::Done,
            (Ok(std::task::Poll::Pending), _) => {
                let waiting = self.waiting.borrow();
                if waiting.arm.is_some() { Poll::Idle { until: waiting.until } } else { Poll::Busy }
            }
            (Err(panic), Some(failure)) => {
                *failure.lock().expect("nobody panics under the lock") = Some(panic);
                Poll::Done
            }
            (Err(panic), None) => resume_unwind(panic),
        }
    }

    fn arm(&mut self, _now: Instant, wakes: &mut P::Wakes) -> Poll {
        // It does not look again itself: what is there already, the platform must find when it is registered.
        let mut waiting = self.waiting.borrow_mut();
        match &mut waiting.arm {
            Some(arm) => arm(wakes),
            None => return Poll::Busy,
        }
        Poll::Idle { until: waiting.until }
    }
}

/// A connection to a socket of the process: the process's end, and the other.
pub async fn connection<W: World>(task: &Task<W::Platform>) -> (StreamOf<W>, StreamOf<W>) {
    let path = W::socket_path();
    let mut listener = task.platform.listen(&path, &Default::default()).expect("the path is free");
    let theirs = W::connect(&path).expect("somebody listens").into_stream().expect("it is a stream");
    let ours = task.poll("a connection", || listener.accept().expect("accept does not fail")).await;
    (ours, theirs)
}

/// Sends all of some bytes, a handle with the first.
pub async fn send<W: World>(
    task: &Task<W::Platform>,
    stream: &mut StreamOf<W>,
    bytes: &[u8],
    handles: &[&HandleOf<W>],
) {
    let mut done = 0;
    while done < bytes.len() {
        let handles = if done == 0 { handles } else { &[] };
        done += task.poll("room to send", || ready(stream.send(&bytes[done..], handles))).await;
    }
}

/// Receives as many bytes as `into` has, and what handles come with them.
pub async fn receive<W: World>(
    task: &Task<W::Platform>,
    stream: &mut StreamOf<W>,
    into: &mut [u8],
    handles: &mut Vec<HandleOf<W>>,
) {
    let mut done = 0;
    while done < into.len() {
        let received = task.poll("bytes", || ready(stream.recv(&mut into[done..], handles))).await;
        assert!(received > 0, "the other end closed");
        done += received;
    }
}

/// What a nonblocking call gave, `None` when it would have blocked.
pub fn ready<T>(result: runtime::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.kind == runtime::ErrorKind::WouldBlock => None,
        Err(error) => panic!("an error of a stream: {error}"),
    }
}

/// Makes the tests of a world, one a rule.
#[macro_export]
macro_rules! conformance {
    ($world:ident) => {
        $crate::conformance! { @suite $world, windows:
            values_are_little_endian_and_typed,
            bulk_operations_touch_their_bytes_and_no_other,
            parts_end_where_the_window_does,
            accesses_outside_or_misaligned_panic,
            memory_is_shared_by_its_handle_at_any_offset,
            only_a_range_of_memory_is_mapped,
        }
        $crate::conformance! { @suite $world, notifiers:
            rings_are_taken_together_and_once,
            only_an_eventfd_becomes_a_notifier,
        }
        $crate::conformance! { @suite $world, streams:
            bytes_arrive_whole_and_in_order,
            handles_ride_on_their_bytes,
            as_many_handles_ride_as_the_contract_says,
            nothing_there_is_no_end,
            the_end_is_told_after_the_last_byte,
            a_close_is_told_of_what_was_not_received,
            a_live_path_is_not_taken_and_a_free_one_is,
            a_path_must_fit_a_socket,
            only_a_stream_becomes_a_stream,
        }
        $crate::conformance! { @suite $world, net:
            hosts_connect_over_both_families,
            nobody_listening_refuses,
            a_taken_port_is_refused,
            a_port_is_free_while_connections_of_its_last_listener_live,
            what_nobody_accepted_ends_with_the_listener,
            nothing_there_is_no_end,
            bytes_cross_whole_and_in_order_both_ways,
            headers_are_peeked_at_and_payload_goes_where_it_belongs,
            fewer_bytes_than_asked_for_are_the_last,
            a_full_stream_takes_no_more_and_loses_nothing,
            memory_is_released_once_in_the_order_of_the_sends,
            one_way_ends_and_the_other_goes_on,
            the_end_comes_after_the_last_byte,
            what_was_not_read_breaks_the_connection,
            a_listener_wakes,
            the_making_of_a_connection_wakes,
            bytes_wake,
            room_wakes,
            a_release_wakes,
            the_end_wakes,
            what_came_before_the_sleep_ends_it,
        }
        $crate::conformance! { @suite $world, nvme_tcp:
            what_is_written_is_read,
            a_refused_command_ends_alone,
            commands_wait_for_buffers_and_all_end,
            a_malformed_pdu_ends_its_connection_alone,
            who_may_not_connect_is_told_why,
            queues_end_with_their_controller,
            changes_are_told_and_settled,
        }
        $crate::conformance! { @suite $world, mailboxes:
            messages_come_once_in_order_and_no_more_than_fit,
            a_box_without_receiver_hands_back,
            messages_cross_cores,
            pollers_start_in_order_on_their_core,
            a_job_gives_its_result_once,
        }
        $crate::conformance! { @suite $world, files:
            small_files_and_their_names,
            a_small_files_lock_is_held_once,
            machine_memory_outlives_its_mapping,
            what_is_written_is_read_in_any_layout,
            misaligned_memory_is_no_hindrance,
            a_read_over_the_end_is_short,
            ranges_are_zeroed_and_discarded,
            every_operation_of_many_ends_once,
            completions_go_to_their_channel,
            a_payload_file_says_what_it_is,
            one_open_file_holds_the_lock,
            a_completion_wakes,
        }
        $crate::conformance! { @suite $world, sleeping:
            a_notifier_wakes,
            a_stream_wakes,
            room_to_send_wakes,
            the_other_ends_close_wakes,
            a_close_wakes_who_does_not_receive,
            a_listener_wakes,
            a_message_wakes,
            a_job_wakes,
            a_moment_wakes,
            what_came_before_the_sleep_ends_it,
            no_message_of_a_long_exchange_is_slept_through,
        }
    };
    (@suite $world:ident, $suite:ident: $($test:ident,)*) => {
        mod $suite {
            $(
                #[test]
                fn $test() {
                    tests::conformance::$suite::$test::<super::$world>();
                }
            )*
        }
    };
}

/// Makes the tests of [`nvme`] in a world with a controller; each has the attributes that follow it.
#[macro_export]
macro_rules! nvme_conformance {
    ($world:ident $(, $attribute:meta)*) => {
        $crate::nvme_conformance! { @all $world [$($attribute),*]
            a_function_is_opened_once_and_can_reach_nothing,
            what_is_mapped_has_device_addresses,
            a_controller_is_identified,
            what_is_written_is_read_at_every_length_and_alignment,
            memory_that_is_not_mapped_is_copied,
            flush_zeroes_deallocate_and_compare,
            queues_wrap,
            requests_outlive_resets,
            an_interrupt_wakes,
            log_pages_are_read,
            the_next_life_reads_what_was_written,
        }
    };
    (@all $world:ident $attributes:tt $($test:ident,)*) => {
        $($crate::nvme_conformance! { @one $world $attributes $test })*
    };
    (@one $world:ident [$($attribute:meta),*] $test:ident) => {
        #[test]
        $(#[$attribute])*
        fn $test() {
            tests::conformance::nvme::$test::<$world>();
        }
    };
}
