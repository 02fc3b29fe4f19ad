//! Answers from outside, kept for their time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lru::LruCache;

use super::policy::Fate;

/// The longest time that an answer is kept, and that there is none is believed.
const POSITIVE: u32 = 3600;
const NEGATIVE: u32 = 300;
/// The most that is kept: entries, and bytes of their messages.
const ENTRIES: usize = 4096;
const BYTES: usize = 4 << 20;
/// The most records of an answer.
const RECORDS: usize = 1024;
/// The most names that follow each other to an address.
const CHAIN: usize = 16;
/// The most addresses of a name that a restricted container learns at once.
const ADDRESSES: usize = 32;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name, lower case.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// Whether signatures are wanted.
    pub dnssec: bool,
}

/// An answer from outside.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Success, or no such name.
    pub code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    at: Instant,
    /// How long it may be kept.
    keep: Duration,
    bytes: usize,
}

impl Answer {
    /// Takes a message of `bytes` over; `None`: it doesn't answer.
    pub fn new(message: Message, bytes: usize) -> Option<Answer> {
        let code = message.metadata.response_code;
        let records = message.answers.len() + message.authorities.len();
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) || records > RECORDS {
            return None;
        }
        let keep = match message.answers.iter().map(|record| record.ttl).min() {
            Some(least) if code == ResponseCode::NoError => least.min(POSITIVE),
            _ => negative(&message.authorities).min(NEGATIVE),
        };
        let keep = Duration::from_secs(u64::from(keep));
        let Message { answers, authorities, .. } = message;
        Some(Answer { code, answers, authorities, at: Instant::now(), keep, bytes })
    }

    fn age(&self) -> u32 {
        u32::try_from(self.at.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Its records as they are by now: the answer and why there is none, without addresses that
    /// `fate` drops.
    pub fn records(&self, fate: impl Fn(IpAddr) -> Fate) -> (Vec<Record>, Vec<Record>) {
        let age = self.age();
        let pass = |records: &[Record]| {
            let kept = records.iter().filter(|record| {
                address(&record.data).is_none_or(|address| fate(address) != Fate::Drop)
            });
            let aged = kept.cloned().map(|mut record| {
                record.ttl = record.ttl.min(POSITIVE).saturating_sub(age);
                record
            });
            aged.collect()
        };
        (pass(&self.answers), pass(&self.authorities))
    }

    /// The addresses to which `name` leads within the answer, and for how long.
    pub fn addresses(&self, name: &Name) -> (Vec<IpAddr>, u32) {
        let (mut name, mut seconds) = (name, POSITIVE);
        for _ in 0..CHAIN {
            let alias = self.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(to) if record.name == *name => Some((&to.0, record.ttl)),
                _ => None,
            });
            let Some((to, ttl)) = alias else { break };
            (name, seconds) = (to, seconds.min(ttl));
        }
        let of_name = self.answers.iter().filter(|record| record.name == *name);
        let mut found = Vec::new();
        for record in of_name {
            let Some(address) = address(&record.data) else { continue };
            if found.len() < ADDRESSES && !found.contains(&address) {
                found.push(address);
                seconds = seconds.min(record.ttl);
            }
        }
        (found, seconds.saturating_sub(self.age()))
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// How long it is to be believed that there is none (RFC 2308).
fn negative(authorities: &[Record]) -> u32 {
    let of_soa = |record: &Record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    };
    authorities.iter().find_map(of_soa).unwrap_or(0)
}

/// Bounded in entries and bytes; the one not used for longest goes first.
#[derive(Debug)]
pub struct Cache {
    entries: LruCache<Key, std::sync::Arc<Answer>>,
    bytes: usize,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { entries: LruCache::unbounded(), bytes: 0 }
    }
}

impl Cache {
    /// An answer that is still good.
    pub fn get(&mut self, key: &Key) -> Option<std::sync::Arc<Answer>> {
        let answer = self.entries.get(key)?;
        if answer.at.elapsed() < answer.keep {
            return Some(answer.clone());
        }
        self.remove(key);
        None
    }

    /// Keeps an answer, if it may be kept at all.
    pub fn put(&mut self, key: Key, answer: std::sync::Arc<Answer>) {
        if answer.keep.is_zero() {
            return;
        }
        self.remove(&key);
        self.bytes += answer.bytes;
        self.entries.put(key, answer);
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some((_, oldest)) = self.entries.pop_lru() else { break };
            self.bytes -= oldest.bytes;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Cache::default();
    }

    fn remove(&mut self, key: &Key) {
        if let Some(answer) = self.entries.pop(key) {
            self.bytes -= answer.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use std::sync::Arc;

    fn name(name: &str) -> Name {
        Name::from_ascii(name).unwrap()
    }

    fn cname(from: &str, to: &str, ttl: u32) -> Record {
        Record::from_rdata(name(from), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn a(of: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn answer(records: Vec<Record>) -> Answer {
        let mut message = Message::response(1, OpCode::Query);
        message.answers = records;
        Answer::new(message, 100).unwrap()
    }

    fn key(of: &str) -> Key {
        Key { name: name(of), kind: RecordType::A, dnssec: false }
    }

    #[test]
    fn a_chain_leads_to_the_last_name_alone() {
        let records = vec![
            a("other.example.", 9, 1),
            cname("B.example.", "c.cdn.example.", 200),
            cname("a.example.", "b.example.", 300),
            a("c.cdn.example.", 1, 100),
            a("c.cdn.example.", 1, 100),
            a("c.cdn.example.", 2, 400),
            a("a.example.", 8, 1),
        ];
        let (found, seconds) = answer(records).addresses(&name("a.example."));
        assert_eq!(found, [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])]);
        assert_eq!(seconds, 100);
    }

    #[test]
    fn a_chain_that_never_ends_leads_nowhere() {
        let records = vec![cname("a.", "b.", 9), cname("b.", "a.", 9)];
        assert!(answer(records).addresses(&name("a.")).0.is_empty());
        let mut long: Vec<Record> =
            (0..40).map(|n| cname(&format!("n{n}."), &format!("n{}.", n + 1), 9)).collect();
        long.push(a("n40.", 1, 9));
        assert!(answer(long).addresses(&name("n0.")).0.is_empty());
    }

    #[test]
    fn addresses_are_left_out_and_bounded() {
        let many = answer((0..=255).map(|last| a("a.", last, 5)).collect());
        assert_eq!(many.addresses(&name("a.")).0.len(), ADDRESSES);
        let drop_odd = |address: IpAddr| match address {
            IpAddr::V4(address) if address.octets()[3] % 2 == 1 => Fate::Drop,
            _ => Fate::Plain,
        };
        assert_eq!(many.records(drop_odd).0.len(), 128);
    }

    #[test]
    fn how_long_an_answer_is_kept() {
        let keep = |records| answer(records).keep.as_secs();
        assert_eq!(keep(vec![cname("a.", "b.", 10), a("b.", 1, 90_000)]), 10);
        assert_eq!(keep(vec![a("b.", 1, 90_000)]), 3600);
        assert_eq!(keep(vec![]), 0);
        let mut message = Message::response(1, OpCode::Query);
        message.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("a."), name("b."), 1, 1, 1, 1, 60);
        message.authorities = vec![Record::from_rdata(name("."), 3600, RData::SOA(soa))];
        assert_eq!(Answer::new(message.clone(), 1).unwrap().keep.as_secs(), 60);
        message.metadata.response_code = ResponseCode::ServFail;
        assert!(Answer::new(message, 1).is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = Cache::default();
        for n in 0..5000 {
            cache.put(key(&format!("n{n}.")), Arc::new(answer(vec![a("a.", 1, 60)])));
        }
        assert_eq!(cache.entries.len(), ENTRIES);
        assert_eq!(cache.bytes, ENTRIES * 100);
        assert!(cache.get(&key("N4999.")).is_some());
        let mut large = answer(vec![a("a.", 1, 60)]);
        large.bytes = BYTES;
        cache.put(key("large."), Arc::new(large));
        assert_eq!((cache.entries.len(), cache.bytes), (1, BYTES));
        let mut old = answer(vec![a("a.", 1, 60)]);
        old.keep = Duration::from_nanos(1);
        cache.put(key("large."), Arc::new(old));
        assert_eq!(cache.bytes, 100);
        assert!(cache.get(&key("large.")).is_none());
        assert_eq!(cache.bytes, 0);
    }
}
