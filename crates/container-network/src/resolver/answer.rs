//! From a packet to its answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, RwLock};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use tokio::sync::OwnedSemaphorePermit;

use super::cache::{Answer, Key};
use super::guest::Guest;
use super::locked;
use super::message::{self, Parsed, Question, Reply};
use super::names::{Asker, Decision, Known, Names};
use super::pins::{Pins, Wanted};
use super::policy::{self, Fate, Verdict};
use super::upstream::Upstream;
use crate::wire::{Refused, ResolverConfig};

/// How long a container's address is good: it may be another's soon.
const OURS_SECONDS: u32 = 5;

/// A network's resolver.
#[derive(Debug, Default)]
pub struct Resolver {
    names: RwLock<Arc<Names>>,
    guests: Mutex<HashMap<String, Arc<Guest>>>,
    upstream: Upstream,
    /// What egress rules are told.
    pub pins: Pins,
}

/// What became of a packet.
#[derive(Debug)]
pub enum Begun {
    /// No answer.
    Dropped,
    /// The answer.
    Answered(Vec<u8>),
    /// The answer takes [`Resolver::finish`].
    Pending(Pending),
}

/// A question that has to be asked for outside.
#[derive(Debug)]
pub struct Pending {
    question: Box<Question>,
    names: Arc<Names>,
    known: Arc<Known>,
    verdict: Verdict,
    _outstanding: OwnedSemaphorePermit,
}

impl Resolver {
    /// Replaces all it knows. What containers have done is kept, and their pins, unless their
    /// addresses or rules changed.
    pub fn configure(&self, config: ResolverConfig) {
        self.upstream.set_servers(&config.upstreams);
        let before = self.names();
        let mut guests = locked(&self.guests);
        let kept: HashMap<String, Arc<Guest>> = config
            .containers
            .iter()
            .map(|resident| {
                let id = resident.container.clone();
                let guest = guests.get(&id).cloned().unwrap_or_default();
                (id, guest)
            })
            .collect();
        let names = Arc::new(Names::new(config, |id| kept.get(id).cloned().unwrap_or_default()));
        *guests = kept;
        drop(guests);
        let find = |names: &Names, id: &str| {
            let found = names.containers().iter().find(|known| known.resident.container == id);
            found.map(|known| {
                (known.resident.ipv4, known.resident.ipv6, known.resident.egress.clone())
            })
        };
        self.pins.retain(|id| find(&before, id).is_some_and(|was| find(&names, id) == Some(was)));
        *self.names.write().unwrap_or_else(std::sync::PoisonError::into_inner) = names;
    }

    fn names(&self) -> Arc<Names> {
        self.names.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Who asks from an address; `None`: nobody we know.
    pub fn asker(&self, from: IpAddr) -> Option<Asker> {
        self.names().asker(from)
    }

    /// What was refused.
    pub fn refused(&self) -> Vec<Refused> {
        let names = self.names();
        let of = |known: &Arc<Known>| {
            let (questions, names) = known.guest.refused();
            let container = known.resident.container.clone();
            (questions > 0).then_some(Refused { container, questions, names })
        };
        names.containers().iter().filter_map(of).collect()
    }

    /// Begins with a packet: what we know ourselves is answered at once.
    pub fn begin(&self, packet: &[u8], from: IpAddr, tcp: bool) -> Begun {
        let names = self.names();
        let Some(asker) = names.asker(from) else { return Begun::Dropped };
        if let Asker::Container(known) = &asker
            && !known.guest.admit()
        {
            return Begun::Dropped;
        }
        let question = match message::parse(packet) {
            Parsed::Ignore => return Begun::Dropped,
            Parsed::Wrong(answer) => return Begun::Answered(answer),
            Parsed::Question(question) => question,
        };
        let answered = |reply: &Reply| Begun::Answered(question.reply(reply, tcp));
        let empty = |code| Reply { ours: true, ..Reply::empty(code) };
        match (names.decide(&asker, &question.name, question.kind), asker) {
            (Decision::Known(data), _) => {
                let answers = question.records(data, OURS_SECONDS);
                answered(&Reply { answers, ..empty(ResponseCode::NoError) })
            }
            (Decision::Unknown, _) => answered(&empty(ResponseCode::NXDomain)),
            (Decision::Refused, asker) => {
                if let Asker::Container(known) = &asker {
                    note(known, &question, "no rule allows this name");
                }
                answered(&Reply { filtered: true, ..Reply::empty(ResponseCode::NXDomain) })
            }
            (Decision::Unwilling, _) | (Decision::Ask(_), Asker::Host) => {
                answered(&Reply::empty(ResponseCode::Refused))
            }
            (Decision::Ask(verdict), Asker::Container(known)) => {
                match known.guest.outstanding.clone().try_acquire_owned() {
                    Err(_) => answered(&Reply::empty(ResponseCode::ServFail)),
                    Ok(_outstanding) => {
                        Begun::Pending(Pending { question, names, known, verdict, _outstanding })
                    }
                }
            }
        }
    }

    /// Asks outside, and tells the container's rules before the answer leaves.
    pub async fn finish(&self, pending: Pending, tcp: bool) -> Vec<u8> {
        let reply = match self.upstream.ask(&pending.key()).await {
            None => Reply::empty(ResponseCode::ServFail),
            Some(answer) => {
                let (reply, wanted) = pending.judge(&answer);
                match wanted {
                    Some(wanted) if !self.pins.announce(&wanted).await => {
                        let container = &pending.known.resident.container;
                        tracing::warn!(container, "a pin was not confirmed in time");
                        Reply::empty(ResponseCode::ServFail)
                    }
                    _ => reply,
                }
            }
        };
        pending.question.reply(&reply, tcp)
    }
}

impl Pending {
    /// What is asked for outside.
    fn key(&self) -> Key {
        Key {
            // The spelling could tell something outside.
            name: self.question.spelled().to_lowercase(),
            kind: self.question.kind,
            dnssec: self.question.dnssec && self.verdict == Verdict::Open,
        }
    }

    /// What is told of an answer, and what has to be in force before.
    fn judge(&self, answer: &Answer) -> (Reply, Option<Wanted>) {
        match &self.verdict {
            Verdict::Named(ports) => self.restricted(ports, answer),
            _ => {
                let (answers, authorities) = answer.records(|address| self.fate(address));
                (Reply { answers, authorities, ..Reply::empty(answer.code) }, None)
            }
        }
    }

    /// A restricted container learns nothing but addresses, of the name that it asked for.
    fn restricted(&self, ports: &[u16], answer: &Answer) -> (Reply, Option<Wanted>) {
        let (found, seconds) = answer.addresses(&self.key().name);
        let (mut told, mut addresses, mut dropped) = (Vec::new(), Vec::new(), 0);
        for address in found {
            let data = match (address, self.question.kind) {
                (IpAddr::V4(address), RecordType::A) => RData::A(address.into()),
                (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(address.into()),
                _ => continue,
            };
            match self.fate(address) {
                Fate::Drop => dropped += 1,
                Fate::Plain => told.push(data),
                Fate::Pin => {
                    told.push(data);
                    addresses.push(address);
                }
            }
        }
        if dropped > 0 {
            note(&self.known, &self.question, "left out private addresses, or the host's own");
        }
        let wanted = (!addresses.is_empty()).then(|| Wanted {
            container: self.known.resident.container.clone(),
            name: self.question.name.clone(),
            addresses,
            ports: ports.to_vec(),
            seconds,
        });
        let reply = Reply {
            filtered: dropped > 0,
            answers: self.question.records(told, seconds),
            ..Reply::empty(answer.code)
        };
        (reply, wanted)
    }

    fn fate(&self, address: IpAddr) -> Fate {
        let rules = &self.known.resident.egress;
        policy::address(address, rules, &self.names.config.host_addresses)
    }

    /// What the asker would be told if a server answered with this packet; for fuzzing.
    #[doc(hidden)]
    pub fn told(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let id = u16::from_be_bytes([*packet.first()?, *packet.get(1)?]);
        let key = self.key();
        let message = message::answer(packet, id, &key.name, key.kind)?;
        let answer = Answer::new(message, packet.len())?;
        Some(self.question.reply(&self.judge(&answer).0, true))
    }
}

fn note(known: &Known, question: &Question, why: &str) {
    if known.guest.refuse(&question.name) {
        let container = &known.resident.container;
        // A name is escaped where it is no text.
        let (name, kind) = (&question.name, question.kind);
        tracing::info!(container, name, %kind, why, "refused a question");
    }
}
