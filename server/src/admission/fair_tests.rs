//! Two users under overload, one at fifty times the other: the other keeps its share.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::queue::{Decision, Lane, Limits, Queue, Ticket};

/// What came of a user's loads.
#[derive(Default)]
struct Came {
    offered: usize,
    admitted: usize,
    refused: usize,
}

struct Play {
    queue: Queue,
    of: Vec<(Ticket, usize)>,
    came: [Came; 2],
    running: VecDeque<Ticket>,
}

impl Play {
    fn offer(&mut self, user: usize) {
        self.came[user].offered += 1;
        let number = u32::try_from(user).unwrap();
        match self.queue.offer(Lane::Interactive, (number, None), Instant::now()) {
            Err(_full) => self.came[user].refused += 1,
            Ok((ticket, instead)) => {
                self.of.push((ticket, user));
                if let Some(crowder) = instead {
                    let user = self.user_of(crowder);
                    self.came[user].refused += 1;
                }
            }
        }
        self.start();
    }

    fn start(&mut self) {
        while let Some(decision) = self.queue.decide() {
            let Decision::Admit(ticket, _) = decision else { panic!("{decision:?}") };
            self.running.push_back(ticket);
            let user = self.user_of(ticket);
            self.came[user].admitted += 1;
        }
    }

    fn end_one(&mut self) {
        let first = self.running.pop_front().unwrap();
        self.queue.finish(first);
        self.start();
    }

    fn user_of(&self, ticket: Ticket) -> usize {
        self.of.iter().find(|(known, _)| *known == ticket).unwrap().1
    }
}

#[test]
fn a_user_at_fifty_times_the_load_leaves_the_other_its_share() {
    let mut queue = Queue::new(Limits { queued_max: 16, active_max: 4 });
    queue.grow(64);
    let mut play =
        Play { queue, of: Vec::new(), came: Default::default(), running: VecDeque::new() };
    for _ in 0..200 {
        for _ in 0..50 {
            play.offer(0);
        }
        play.offer(1);
        play.end_one();
        play.end_one();
    }
    let [greedy, modest] = &play.came;
    assert_eq!(greedy.offered, 50 * modest.offered);
    // Two end a round, so its share is one a round: all that it asks for.
    assert!(modest.admitted >= modest.offered - 4, "{} of {}", modest.admitted, modest.offered);
    assert_eq!(modest.refused, 0);
    // And nothing is left idle for that.
    assert!(greedy.admitted >= 190, "{}", greedy.admitted);
    assert!(greedy.admitted + greedy.refused + 16 >= greedy.offered);
}
