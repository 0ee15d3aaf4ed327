//! Notifiers: doorbells made by another process.

use super::{World, run};
use runtime::{ErrorKind, Handle, Memory, Notifier, Platform};

/// However often it was rung, there is one ring to take, whichever end looks.
pub fn rings_are_taken_together_and_once<W: World>() {
    run::<W, _>(1, |_task| async move {
        let (one, other) = W::eventfd();
        let (one, other) = (one.into_notifier().unwrap(), other.into_notifier().unwrap());
        assert!(!one.take());
        for _ in 0..3 {
            other.ring();
        }
        assert!(one.take());
        assert!(!one.take() && !other.take());
        one.ring();
        assert!(one.take());
    });
}

/// Memory and sockets are none.
pub fn only_an_eventfd_becomes_a_notifier<W: World>() {
    run::<W, _>(1, |task| async move {
        let memory = task.platform.shared_memory("test", 4096).unwrap();
        let refused = memory.handle().unwrap().into_notifier();
        assert_eq!(refused.err().map(|error| error.kind), Some(ErrorKind::Invalid));
        let path = W::socket_path();
        let _listener = task.platform.listen(&path, &Default::default()).unwrap();
        let refused = W::connect(&path).unwrap().into_notifier();
        assert_eq!(refused.err().map(|error| error.kind), Some(ErrorKind::Invalid));
    });
}
