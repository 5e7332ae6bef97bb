//! Consumer groups: who owns which partition, and since when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::topic::{TopicState, lock};
use crate::log::{LogError, Result, TopicPartition};

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    /// Grows with every member that joins or leaves.
    generation: AtomicU64,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
pub(super) struct Members {
    next_id: u64,
    topics: BTreeMap<u64, Vec<Arc<TopicState>>>,
    owners: BTreeMap<TopicPartition, Owner>,
}

/// Since when a member owns a partition. Work of an earlier ownership can't be committed, even
/// by the same member: its state may lack what another one committed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    member: u64,
    pub(super) since: u64,
}

/// A partition that a member owns.
pub(super) struct Owned {
    pub(super) topic: Arc<TopicState>,
    pub(super) partition: TopicPartition,
    pub(super) since: u64,
}

impl Group {
    pub(super) fn new(name: &str) -> Group {
        Group { name: name.to_owned(), generation: AtomicU64::new(0), members: Mutex::default() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Adds a member, and gives it its share of the topics' partitions.
    pub(super) fn join(&self, topics: Vec<Arc<TopicState>>) -> u64 {
        let mut members = lock(&self.members);
        let member = members.next_id;
        members.next_id += 1;
        members.topics.insert(member, topics);
        self.rebalance(&mut members);
        member
    }

    /// Takes a member out, and gives its partitions to the others.
    pub(super) fn leave(&self, member: u64) {
        let mut members = lock(&self.members);
        members.topics.remove(&member);
        members.owners.retain(|_, owner| owner.member != member);
        self.rebalance(&mut members);
    }

    /// The generation, and what the member owns in it.
    pub(super) fn owned(&self, member: u64) -> (u64, Vec<Owned>) {
        let members = lock(&self.members);
        let topics = members.topics.get(&member).map(Vec::as_slice).unwrap_or_default();
        let owned =
            members.owners.iter().filter(|(_, owner)| owner.member == member).filter_map(|(partition, owner)| {
                let topic = topics.iter().find(|topic| topic.spec.name == partition.topic)?;
                Some(Owned { topic: topic.clone(), partition: partition.clone(), since: owner.since })
            });
        (self.generation(), owned.collect())
    }

    /// Makes sure that the member still owns the partitions it claims, each with the time since
    /// when. Nothing changes hands before the guard is dropped.
    pub(super) fn fence<'a>(
        &self,
        member: u64,
        claims: impl Iterator<Item = (&'a TopicPartition, u64)>,
    ) -> Result<MutexGuard<'_, Members>> {
        let members = lock(&self.members);
        for (partition, since) in claims {
            if members.owners.get(partition) != Some(&Owner { member, since }) {
                return Err(LogError::Fenced(partition.clone()));
            }
        }
        Ok(members)
    }

    fn rebalance(&self, members: &mut Members) {
        let generation = self.generation() + 1;
        let mut subscribers: BTreeMap<&str, (&Arc<TopicState>, Vec<u64>)> = BTreeMap::new();
        for (member, topics) in &members.topics {
            for topic in topics {
                subscribers.entry(&topic.spec.name).or_insert((topic, Vec::new())).1.push(*member);
            }
        }
        members.owners.retain(|partition, _| subscribers.contains_key(partition.topic.as_str()));
        for (topic, subscribed) in subscribers.values() {
            distribute(&mut members.owners, topic, subscribed, generation);
        }
        self.generation.store(generation, Ordering::Release);
        for (topic, _) in subscribers.values() {
            topic.announce();
        }
    }
}

/// Gives every member an equal share of a topic, the first ones one more where it doesn't come
/// out even. A member keeps what it has up to its share. Topics are distributed one by one and
/// alike, so topics with equally many partitions and the same members stay aligned.
fn distribute(owners: &mut BTreeMap<TopicPartition, Owner>, topic: &TopicState, members: &[u64], generation: u64) {
    let partitions = topic.spec.partitions as usize;
    let (share, mut extra) = (partitions / members.len(), partitions % members.len());
    let mut held = vec![0; members.len()];
    let mut free = Vec::new();
    for partition in (0..topic.spec.partitions).map(|partition| topic.partition(partition)) {
        let owner = owners.get(&partition).and_then(|owner| members.iter().position(|member| *member == owner.member));
        match owner {
            Some(index) if held[index] < share => held[index] += 1,
            Some(index) if held[index] == share && extra > 0 => {
                held[index] += 1;
                extra -= 1;
            }
            _ => free.push(partition),
        }
    }
    for partition in free {
        // The first of those who hold least; there is one, as only subscribed topics come here.
        let Some(index) = (0..members.len()).min_by_key(|index| held[*index]) else { return };
        held[index] += 1;
        owners.insert(partition, Owner { member: members[index], since: generation });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::TopicSpec;
    use crate::log::embedded::topic::Bounds;

    fn topic(name: &str, partitions: u32) -> Arc<TopicState> {
        let spec = TopicSpec { name: name.to_owned(), partitions, retention: None };
        Arc::new(TopicState::new(0, spec, (0..partitions).map(|_| Bounds::EMPTY)))
    }

    fn partitions(group: &Group, member: u64) -> Vec<(String, u32)> {
        group.owned(member).1.into_iter().map(|owned| (owned.partition.topic, owned.partition.partition)).collect()
    }

    #[test]
    fn shares_are_equal_sticky_and_aligned() {
        let (a, b) = (topic("a", 7), topic("b", 7));
        let group = Group::new("g");
        let mut members: Vec<u64> = Vec::new();
        for step in 0..12 {
            let before: Vec<_> = members.iter().map(|member| partitions(&group, *member)).collect();
            let kept_members = members.clone();
            if step % 5 == 4 {
                group.leave(members.remove(step % members.len()));
            } else {
                members.push(group.join(vec![a.clone(), b.clone()]));
            }
            let after: Vec<_> = members.iter().map(|member| partitions(&group, *member)).collect();
            let mut all: Vec<_> = after.iter().flatten().cloned().collect();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), 14, "every partition has one owner");
            for owned in &after {
                let (of_a, of_b): (Vec<_>, Vec<_>) = owned.iter().partition(|(topic, _)| topic == "a");
                assert_eq!(of_a.iter().map(|a| a.1).collect::<Vec<_>>(), of_b.iter().map(|b| b.1).collect::<Vec<_>>());
                assert!((7 / members.len()..=7_usize.div_ceil(members.len())).contains(&of_a.len()));
            }
            // Whoever stays keeps as many of the old ones as the share allows.
            for (member, old) in kept_members.iter().zip(&before) {
                let Some(index) = members.iter().position(|other| other == member) else { continue };
                let kept = old.iter().filter(|partition| after[index].contains(partition)).count();
                assert!(kept >= old.len().min(2 * (7 / members.len())), "step {step}");
            }
        }
    }

    #[test]
    fn an_earlier_ownership_is_fenced() {
        let a = topic("a", 1);
        let group = Group::new("g");
        let first = group.join(vec![a.clone()]);
        let (_, owned) = group.owned(first);
        let claim = |since| group.fence(first, [(&owned[0].partition, since)].into_iter()).is_ok();
        assert!(claim(owned[0].since));
        assert!(!claim(owned[0].since + 1));
        let second = group.join(vec![a]);
        assert!(claim(owned[0].since), "it was not taken away");
        group.leave(first);
        assert!(!claim(owned[0].since));
        assert_eq!(partitions(&group, second), [("a".to_owned(), 0)]);
    }
}
