//! A vhost-user-blk controller: a socket, a device, and the front-end that is served.
//!
//! One front-end at a time. The next one that connects waits in the socket's backlog until the one before is gone:
//! QEMU 7.2 hangs for good when a connection is accepted and then closed, so none is accepted that cannot be served,
//! and a controller that stops stops listening before it closes what it has.

use super::session::{Ending, Session, SessionConfig};
use crate::block::Bdev;
use crate::reached::Reached;
use crate::virtio::blk::{BlkDevice, BlkOptions, MAX_QUEUES};
use crate::virtio::memory::{GuestMemory, Retired};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use runtime::{Instant, Listener, Platform, Poll, SocketOptions, Wakes};
use serde_json::{Value, json};
use tracing::{error, info, warn};

/// How often the sockets are looked at while the device has other work, or the core never sleeps: a system call in
/// each poll would cost more than a request does. A look takes 0.8 us on a host of 2026.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// When to accept again after the host had no handle left for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a controller is made with.
pub struct ControllerConfig<P: Platform> {
    /// Its name, for logs.
    pub name: String,
    /// Where it listens.
    pub socket_path: String,
    /// Who may connect.
    pub socket_options: SocketOptions,
    /// The block device behind it.
    pub bdev: Arc<dyn Bdev<P>>,
    /// Refuse writes, whatever the bdev allows.
    pub read_only: bool,
    /// Packed rings are offered to drivers.
    pub packed_ring: bool,
    /// In-band notifications are offered to front-ends: in a simulation.
    pub in_band_notifications: bool,
    /// Its number in the flight recorder.
    pub device: u16,
}

/// A vhost-user-blk controller. It lives on one core.
pub struct Controller<P: Platform> {
    platform: P,
    name: Rc<str>,
    device_number: u16,
    in_band_notifications: bool,
    /// `None` once it stops.
    listener: Option<P::Listener>,
    device: BlkDevice<P>,
    session: Option<Session<P>>,
    /// Memory of the session before, while there is none.
    retired: Vec<Retired<P>>,
    /// Carried from session to session.
    write_cache_known: bool,
    /// When the sockets are looked at next.
    look_at: Instant,
    /// Nothing is accepted before: the host had no handle left.
    accept_at: Instant,
    /// The core may have slept since the last poll: whatever was armed may have happened.
    armed: bool,
}

impl<P: Platform> Controller<P> {
    /// A controller that listens. Called on the core that it will live on. Errors: those of [`Bdev::channel`] and of
    /// [`Platform::listen`].
    pub fn new(platform: P, config: ControllerConfig<P>) -> runtime::Result<Self> {
        let ControllerConfig {
            name,
            socket_path: path,
            socket_options,
            bdev,
            read_only,
            packed_ring,
            in_band_notifications,
            device,
        } = config;
        let channel = bdev.channel(&platform).inspect_err(|error| {
            error!(controller = %name, bdev = bdev.name(), %error, "the bdev cannot be used on this core");
        })?;
        let options = BlkOptions { read_only, packed_ring, device };
        let blk = BlkDevice::new(platform.clone(), bdev, channel, options);
        // Last: from here on somebody may connect, and is answered.
        let listener = platform.listen(&path, &socket_options).inspect_err(|error| {
            error!(controller = %name, path, %error, "cannot listen");
        })?;
        info!(controller = %name, path, "listening");
        Ok(Self {
            look_at: platform.now(),
            accept_at: platform.now(),
            platform,
            name: name.into(),
            device_number: device,
            in_band_notifications,
            listener: Some(listener),
            device: blk,
            session: None,
            retired: Vec::new(),
            write_cache_known: false,
            armed: false,
        })
    }

    /// Does what there is to do. `Done` once it was stopped ([`Controller::begin_stop`]) and nothing is in flight.
    pub fn poll(&mut self, now: Instant) -> Poll {
        let look = core::mem::take(&mut self.armed) || now >= self.look_at;
        if look {
            self.look_at = now.after(LOOK_INTERVAL);
        }
        let Some(session) = &mut self.session else { return self.poll_alone(now, look) };
        let any = session.poll(now, &mut self.device, look);
        if self.device.take_rebound() {
            session.config_changed();
        }
        if session.is_over() {
            self.write_cache_known = session.write_cache_known();
            self.retired = self.session.take().map_or_else(Vec::new, Session::into_retired);
            // The next front-end may be waiting already.
            self.look_at = now;
            return Poll::Busy;
        }
        if any {
            return Poll::Busy;
        }
        let until = session.wake_at(&self.device);
        Poll::Idle { until: if look { until } else { Some(earliest(until, self.look_at)) } }
    }

    /// Goes on without a front-end. The bdev may have to hear of its device at any time, and memory is given back.
    fn poll_alone(&mut self, now: Instant, look: bool) -> Poll {
        let worked = self.device.poll(now, &GuestMemory::new());
        self.retired.retain_mut(|retired| !retired.poll(&self.platform));
        let polled = self.poll_listener(now, look);
        match polled {
            Poll::Done if !self.retired.is_empty() => Poll::Idle { until: None },
            Poll::Idle { .. } if worked => Poll::Busy,
            Poll::Idle { until } => {
                Poll::Idle { until: until.into_iter().chain(self.device.wake_at()).min() }
            }
            other => other,
        }
    }

    /// Accepts the next front-end, if one waits.
    fn poll_listener(&mut self, now: Instant, look: bool) -> Poll {
        let Some(listener) = &mut self.listener else { return Poll::Done };
        if !look || now < self.accept_at {
            return Poll::Idle { until: Some(self.look_at.max(self.accept_at)) };
        }
        match listener.accept() {
            Ok(Some(stream)) => {
                let config = SessionConfig {
                    controller: self.name.clone(),
                    device: self.device_number,
                    in_band_notifications: self.in_band_notifications,
                    write_cache_known: self.write_cache_known,
                };
                let retired = core::mem::take(&mut self.retired);
                self.session = Some(Session::new(self.platform.clone(), config, stream, retired, now));
                self.look_at = now;
                Poll::Busy
            }
            Ok(None) => Poll::Idle { until: None },
            Err(error) => {
                Reached::AcceptFailed.mark::<P::Window>();
                warn!(controller = %self.name, %error, "a front-end cannot be accepted; it waits");
                self.accept_at = now.after(ACCEPT_RETRY);
                Poll::Idle { until: Some(self.accept_at) }
            }
        }
    }

    /// Before sleep: asks for notifications, looks again, and registers what may wake the controller.
    pub fn arm(&mut self, now: Instant, wakes: &mut P::Wakes) -> Poll {
        self.armed = true;
        let Some(session) = &mut self.session else {
            if self.device.arm(wakes) {
                return Poll::Busy;
            }
            for retired in &self.retired {
                retired.arm(wakes);
            }
            let wake_at = self.device.wake_at();
            return match &self.listener {
                None if self.retired.is_empty() => Poll::Done,
                None => Poll::Idle { until: wake_at },
                // The connection that waits would end the sleep at once, over and over.
                Some(_) if now < self.accept_at => {
                    Poll::Idle { until: Some(earliest(wake_at, self.accept_at)) }
                }
                Some(listener) => {
                    wakes.listener(listener);
                    Poll::Idle { until: wake_at }
                }
            };
        };
        if session.arm(&mut self.device, wakes) {
            return Poll::Busy;
        }
        Poll::Idle { until: session.wake_at(&self.device) }
    }

    /// The bdev is gone, and another one of its name is there: goes over to it as soon as nothing is in flight.
    pub fn rebind(&mut self, bdev: Arc<dyn Bdev<P>>) {
        info!(controller = %self.name, bdev = bdev.name(), "goes over to the bdev that came");
        self.device.rebind(bdev);
    }

    /// The bdev has another size: takes it over, and tells the front-end.
    pub fn resized(&mut self) {
        self.device.resized();
        if let Some(session) = &mut self.session {
            session.config_changed();
        }
    }

    /// Begins to stop: nobody can connect any more, what is in flight is drained, and then the front-end's connection
    /// is closed.
    pub fn begin_stop(&mut self) {
        if self.listener.take().is_some() {
            info!(controller = %self.name, in_flight = self.device.in_flight(), "stopping");
        }
        if let Some(session) = &mut self.session {
            session.end(Ending::Stopped, &mut self.device);
        }
    }

    /// Whether it was stopped and holds nothing any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.listener.is_none() && self.session.is_none() && self.retired.is_empty()
    }

    /// Its sessions, as `vhost_get_controllers` shows them: one if a front-end is connected, else none.
    #[must_use]
    pub fn describe(&self) -> Value {
        let sessions = self.session.iter().map(|session| {
            json!({
                "vid": self.device_number,
                "id": 0,
                "name": format!("{}s{}", self.name, self.device_number),
                "started": self.device.running() > 0,
                "max_queues": MAX_QUEUES,
                "inflight_task_cnt": self.device.in_flight(),
                "running_queues": self.device.running(),
                "memory_regions": session.memory().len(),
                "features": self.device.features(),
                "protocol_features": session.protocol_features(),
            })
        });
        sessions.collect()
    }
}

/// The earlier of two moments, the first of which may be never.
fn earliest(until: Option<Instant>, other: Instant) -> Instant {
    until.map_or(other, |until| until.min(other))
}
