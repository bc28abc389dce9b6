//! Which of several controllers leads a switch. They share nothing: what one knows of another is what the switch tells,
//! the highest generation id that it has seen (6.3.6).
//!
//! Whoever leads says so again every second with a generation id that is one higher; its lower 16 bits are the leader's
//! priority. The others ask the switch. One that sees a lower priority than its own there, or the same id for
//! [`LEASE`], claims the switch with an id far above: the former leader's next one is then stale, which is how it learns
//! that it follows now. The flows stay in the switch throughout; the new leader reads them back.

use std::time::{Duration, Instant};

use ofp::{Body, ErrorCode, Role, RoleMessage};

/// How often the leader says that it leads, and the others ask.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a leader may say nothing.
const LEASE: Duration = Duration::from_secs(3);
/// How long the switch may take to answer before it is asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bits of a generation id that are the leader's priority.
const PRIORITY_BITS: u32 = 16;
/// Steps by which a claim is above everything that the former leader may say before it learns of it.
const CLAIM: u64 = 16;
/// What a switch tells that has seen none.
const NONE_YET: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Another one leads, or nobody does. What was seen, and since when.
    Follows(Option<(u64, Instant)>),
    /// We asked to lead, with this id.
    Claims(u64),
    /// We lead, and said so last with this id.
    Leads(u64),
    /// We still lead, and say so with this id.
    Renews(u64),
}

/// What an answer of the switch means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Nothing new.
    None,
    /// We lead from now on.
    Lead,
    /// Another one does.
    Follow,
}

/// Our part in the election of one switch's leader.
#[derive(Debug)]
pub(super) struct Election {
    priority: u16,
    state: State,
    /// The question under way.
    asked: Option<(u32, Instant)>,
    next: Instant,
}

impl Election {
    pub(super) fn new(priority: u16, now: Instant) -> Election {
        Election { priority, state: State::Follows(None), asked: None, next: now }
    }

    pub(super) fn leads(&self) -> bool {
        matches!(self.state, State::Leads(_) | State::Renews(_))
    }

    /// When [`Election::due`] has something to say.
    pub(super) fn deadline(&self) -> Instant {
        self.next
    }

    fn above(&self, generation: u64, steps: u64) -> u64 {
        let term = (generation >> PRIORITY_BITS).wrapping_add(steps);
        term << PRIORITY_BITS | u64::from(self.priority)
    }

    /// What to ask the switch now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Body> {
        if now < self.next {
            return None;
        }
        self.next = now + INTERVAL;
        if self.asked.is_some_and(|(_, at)| now < at + ANSWER_LIMIT) {
            // A switch that is slow to answer is not asked twice.
            return None;
        }
        let (role, generation_id) = match self.state {
            // The leader asks too: of two that claimed at once, the first is not told that it lost.
            State::Follows(_) | State::Leads(_) => (Role::NoChange, 0),
            State::Claims(generation) | State::Renews(generation) => (Role::Master, generation),
        };
        Some(Body::RoleRequest(RoleMessage { role, generation_id }))
    }

    /// The question was sent under this number.
    pub(super) fn sent(&mut self, xid: u32, now: Instant) {
        self.asked = Some((xid, now));
    }

    /// Whether an answer with this number is ours.
    pub(super) fn takes(&mut self, xid: u32) -> bool {
        let ours = self.asked.is_some_and(|(asked, _)| asked == xid);
        if ours {
            self.asked = None;
        }
        ours
    }

    /// The switch answered our question.
    pub(super) fn answered(&mut self, now: Instant, answer: RoleMessage) -> Turn {
        match self.state {
            State::Follows(seen) => {
                self.follow(now, seen, answer.generation_id);
                Turn::None
            }
            State::Claims(generation) if answer.role == Role::Master => {
                self.state = State::Leads(generation);
                Turn::Lead
            }
            State::Leads(generation) if answer.role == Role::Master => {
                self.state = State::Renews(generation.wrapping_add(1 << PRIORITY_BITS));
                self.next = now;
                Turn::None
            }
            State::Renews(generation) if answer.role == Role::Master => {
                self.state = State::Leads(generation);
                Turn::None
            }
            State::Claims(_) | State::Leads(_) | State::Renews(_) => self.lose(now),
        }
    }

    fn follow(&mut self, now: Instant, seen: Option<(u64, Instant)>, generation: u64) {
        let since = seen.filter(|(earlier, _)| *earlier == generation).map_or(now, |(_, since)| since);
        let lower = (generation as u16) < self.priority;
        if generation == NONE_YET || lower || now >= since + LEASE {
            // From nothing it begins in the middle, so that the numbers do not wrap for a long time.
            let from = if generation == NONE_YET { 1 << (2 * PRIORITY_BITS) } else { generation };
            self.state = State::Claims(self.above(from, CLAIM));
            self.next = now;
        } else {
            self.state = State::Follows(Some((generation, since)));
        }
    }

    /// The switch refused, or said that somebody else leads.
    pub(super) fn lose(&mut self, now: Instant) -> Turn {
        let led = self.leads();
        self.state = State::Follows(None);
        self.next = now + INTERVAL;
        if led { Turn::Follow } else { Turn::None }
    }

    /// Whether this refusal says that the switch has no roles at all.
    pub(super) fn has_none(error: ErrorCode) -> bool {
        error == ErrorCode::BAD_TYPE || error == ErrorCode::ROLE_UNSUPPORTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a switch does with roles.
    #[derive(Default)]
    struct Switch {
        generation: Option<u64>,
        leader: Option<usize>,
    }

    impl Switch {
        fn answer(&mut self, from: usize, request: RoleMessage) -> Result<RoleMessage, ErrorCode> {
            if request.role == Role::Master {
                let stale = |seen| (request.generation_id.wrapping_sub(seen) as i64) < 0;
                if self.generation.is_some_and(stale) {
                    return Err(ErrorCode::ROLE_STALE);
                }
                (self.generation, self.leader) = (Some(request.generation_id), Some(from));
            }
            let role = match self.leader {
                Some(leader) if leader == from => Role::Master,
                Some(_) => Role::Slave,
                None => Role::Equal,
            };
            Ok(RoleMessage { role, generation_id: self.generation.unwrap_or(NONE_YET) })
        }
    }

    /// Controllers and whether each works, with a switch, in steps of a tenth of a second.
    struct Field {
        switch: Switch,
        controllers: Vec<(Election, bool)>,
        now: Instant,
    }

    impl Field {
        fn run(&mut self, steps: u32) {
            for _ in 0..steps {
                self.now += Duration::from_millis(100);
                for (number, (election, works)) in self.controllers.iter_mut().enumerate() {
                    let Some(Body::RoleRequest(request)) = election.due(self.now).filter(|_| *works) else {
                        continue;
                    };
                    match self.switch.answer(number, request) {
                        Ok(answer) => election.answered(self.now, answer),
                        Err(_) => election.lose(self.now),
                    };
                }
            }
        }

        fn leaders(&self) -> Vec<usize> {
            let leads = |(number, (election, works)): (usize, &(Election, bool))| {
                (*works && election.leads()).then_some(number)
            };
            self.controllers.iter().enumerate().filter_map(leads).collect()
        }
    }

    #[test]
    fn the_highest_priority_that_works_leads() {
        let now = Instant::now();
        let controllers = [10, 30, 20].map(|priority| (Election::new(priority, now), true)).into();
        let mut field = Field { switch: Switch::default(), controllers, now };
        field.run(50);
        assert_eq!((field.leaders(), field.switch.leader), (vec![1], Some(1)));
        field.run(100);
        assert_eq!(field.leaders(), [1], "and goes on to");
        field.controllers[1].1 = false;
        field.run(50);
        assert_eq!((field.leaders(), field.switch.leader), (vec![2], Some(2)), "the next takes over");
        // The first wakes up and believes that it still leads.
        field.controllers[1].1 = true;
        field.run(50);
        assert_eq!(field.leaders(), [1]);
        // A restarted switch knows nothing.
        field.switch = Switch::default();
        field.run(50);
        assert_eq!((field.leaders(), field.switch.leader), (vec![1], Some(1)));
    }

    #[test]
    fn equals_do_not_fight() {
        let now = Instant::now();
        let controllers = [7, 7].map(|priority| (Election::new(priority, now), true)).into();
        let mut field = Field { switch: Switch::default(), controllers, now };
        field.run(20);
        let first = field.leaders();
        assert_eq!(first.len(), 1);
        for _ in 0..10 {
            field.run(10);
            assert_eq!(field.leaders(), first);
        }
    }
}
