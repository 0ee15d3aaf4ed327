//! What a ring and its requests are, written without a ring: lists of names. And a world of one layout that is run
//! step by step beside the model, and held against it.

use super::{Layout, Request};
use std::collections::VecDeque;
use tests::flat;

/// Where every request is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Model {
    offered: Request,
    /// Offered and not taken, in order.
    available: VecDeque<Request>,
    /// Taken and not given back, in the order of taking.
    in_flight: Vec<Request>,
    /// Given back and not seen by the driver, in order.
    given: VecDeque<Request>,
    /// What the device was doing when it died.
    doing: Doing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Doing {
    #[default]
    Nothing,
    /// Taking the first available request: it may have been taken.
    Taking,
    /// Giving these back: they may have been, together or from the first on.
    Giving(Vec<Request>),
}

/// One step of a device's life, or of its driver beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The driver takes what was given back and offers requests of so many descriptors each, in turn, until the ring is
    /// full.
    Fill(&'static [u16]),
    /// The device takes at most this many requests.
    Take(usize),
    /// The device gives back, in one batch, this many of those in flight, each the `pick`-th of what is left.
    Give(Vec<usize>),
}

/// A ring, its driver, and where its requests are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World<L> {
    layout: L,
    model: Model,
    /// Requests that the driver will still offer.
    left: u32,
}

impl<L: Layout> World<L> {
    pub(super) fn new(size: u16, past: u16, requests: u32) -> Self {
        Self { layout: L::new(size, past), model: Model::default(), left: requests }
    }

    /// Runs one life that dies at its `death`-th store (`None`: it goes on to the end of the steps), and says whether
    /// it lived. Panics when what it found is not what the model has.
    pub(super) fn live(&mut self, steps: &[Step], death: Option<u64>) -> bool {
        let lived = match death {
            Some(store) => flat::die_at(store, || self.life(steps)).is_some(),
            None => {
                self.life(steps);
                true
            }
        };
        self.settle();
        lived
    }

    fn life(&mut self, steps: &[Step]) {
        let mut life = self.begin();
        for step in steps {
            match step {
                Step::Fill(pattern) => flat::immortal(|| self.fill(pattern)),
                Step::Take(most) => _ = (0..*most).take_while(|_| self.take(&mut life)).count(),
                Step::Give(picks) => self.give(&mut life, picks),
            }
        }
    }

    /// Recovery, against the model.
    fn begin(&mut self) -> L::Life {
        let (life, found) = self.layout.begin();
        let model = &mut self.model;
        if model.doing == Doing::Taking && found.len() == model.in_flight.len() + 1 {
            // It had been taken after all.
            model.in_flight.extend(model.available.pop_front());
        }
        model.doing = Doing::Nothing;
        assert_eq!(found, model.in_flight, "found in the region, and in flight");
        life
    }

    fn take(&mut self, life: &mut L::Life) -> bool {
        self.model.doing = Doing::Taking;
        let taken = self.layout.take(life);
        self.model.doing = Doing::Nothing;
        assert_eq!(taken, self.model.available.front().copied(), "taken, and available");
        self.model.in_flight.extend(self.model.available.pop_front());
        taken.is_some()
    }

    fn give(&mut self, life: &mut L::Life, picks: &[usize]) {
        let mut left = self.model.in_flight.clone();
        let mut batch = Vec::new();
        for pick in picks {
            if !left.is_empty() {
                batch.push(left.remove(pick % left.len()));
            }
        }
        if batch.is_empty() {
            return;
        }
        self.model.doing = Doing::Giving(batch.clone());
        self.layout.give_back(life, &batch);
        self.settle();
        assert_eq!(self.layout.visible(), Vec::from(self.model.given.clone()), "visible, and given back");
    }

    /// What became of a batch that was being given back: the ring itself says it.
    fn settle(&mut self) {
        let Doing::Giving(batch) = &self.model.doing else { return };
        let visible = self.layout.visible();
        let Some(new) = visible.get(self.model.given.len()..) else {
            panic!("{:?} were given back, the driver sees {visible:?}", self.model.given)
        };
        let whole = new.is_empty() || new.len() == batch.len();
        assert!(batch.starts_with(new) && (whole || !L::BATCHES_ARE_ATOMIC), "of {batch:?}: {new:?}");
        self.model.in_flight.retain(|request| !new.contains(request));
        self.model.given.extend(new);
        self.model.doing = Doing::Nothing;
    }

    /// The driver's turn.
    pub(super) fn fill(&mut self, pattern: &[u16]) {
        let seen = self.layout.reap();
        assert_eq!(
            seen,
            Vec::from(std::mem::take(&mut self.model.given)),
            "seen by the driver, and given back"
        );
        for descriptors in pattern.iter().cycle() {
            if self.left == 0 || !self.layout.offer(self.model.offered, *descriptors) {
                break;
            }
            self.model.available.push_back(self.model.offered);
            self.model.offered += 1;
            self.left -= 1;
        }
    }

    /// The last life: it lives until every request has come back.
    pub(super) fn drain(&mut self) {
        let mut life = self.begin();
        loop {
            while self.take(&mut life) {}
            self.give(&mut life, &[0, 0]);
            self.fill(&[1]);
            let model = &self.model;
            if self.left == 0 && model.available.is_empty() && model.in_flight.is_empty() {
                break;
            }
        }
    }
}
