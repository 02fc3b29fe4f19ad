//! Questions read and answers written.
//!
//! Nothing of a question but its name and type is ever sent on.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::names;

/// A message's header.
const HEADER: usize = 12;
/// The longest answer over UDP: what an IPv6 packet of 1280 bytes holds.
pub const UDP_PAYLOAD: u16 = 1232;
/// The longest message over TCP.
pub const MAX_MESSAGE: usize = 65_535;
/// The code of an extended error (RFC 8914), and "filtered".
const EXTENDED_ERROR: (u16, u16) = (15, 17);
/// The most additional records of a question: EDNS, a signature, and some that we don't know.
const MAX_ADDITIONAL: u16 = 4;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Question {
    id: u16,
    recursion: bool,
    query: Query,
    /// The longest answer over UDP that the asker takes; `None`: no EDNS.
    payload: Option<u16>,
    /// Whether signatures are wanted.
    pub dnssec: bool,
    /// The name as it is looked up.
    pub name: String,
    /// The type.
    pub kind: RecordType,
}

/// What a packet turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// Nothing to answer.
    Ignore,
    /// To be answered with this error.
    Wrong(Vec<u8>),
    /// A question.
    Question(Box<Question>),
}

/// Reads a packet of an asker.
pub fn parse(packet: &[u8]) -> Parsed {
    let Some(header) = packet.get(..HEADER) else { return Parsed::Ignore };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (id, flags) = (word(0), word(2));
    if flags & 0x8000 != 0 {
        // Answers are never answered: two servers would talk for ever.
        return Parsed::Ignore;
    }
    let op = OpCode::from_u8((flags >> 11 & 0xf) as u8);
    let wrong = |code| Parsed::Wrong(error(id, op, code));
    if op != OpCode::Query {
        return wrong(ResponseCode::NotImp);
    }
    // Before anything is reserved for what the header only claims.
    if word(4) != 1 || word(6) != 0 || word(8) != 0 || word(10) > MAX_ADDITIONAL {
        return wrong(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return wrong(ResponseCode::FormErr) };
    let Some(query) = message.queries.first() else { return wrong(ResponseCode::FormErr) };
    let kind = query.query_type;
    let mut question = Question {
        id,
        recursion: message.metadata.recursion_desired,
        query: query.clone(),
        payload: message.edns.as_ref().map(Edns::max_payload),
        dnssec: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        name: String::new(),
        kind,
    };
    let refused = match message.edns.as_ref().map_or(0, Edns::version) {
        0 if query.query_class != DNSClass::IN => Some(ResponseCode::Refused),
        // Types that are no types of data: transfers, "any" and the like.
        0 if matches!(u16::from(kind), 0 | 41 | 128..=255) => Some(ResponseCode::NotImp),
        0 => None,
        _ => Some(ResponseCode::BADVERS),
    };
    if let Some(code) = refused {
        return Parsed::Wrong(question.reply(&Reply::empty(code), false));
    }
    question.name = names::text(&query.name);
    Parsed::Question(Box::new(question))
}

fn error(id: u16, op: OpCode, code: ResponseCode) -> Vec<u8> {
    Message::error_msg(id, op, code).to_vec().unwrap_or_default()
}

/// What a question is answered with.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How it went.
    pub code: ResponseCode,
    /// Whether we are the ones who know.
    pub ours: bool,
    /// Whether rules are why there isn't more.
    pub filtered: bool,
    /// The answer.
    pub answers: Vec<Record>,
    /// Why there is none.
    pub authorities: Vec<Record>,
}

impl Reply {
    /// Nothing but a code.
    pub fn empty(code: ResponseCode) -> Reply {
        Reply { code, ours: false, filtered: false, answers: Vec::new(), authorities: Vec::new() }
    }
}

impl Question {
    /// The name as it was spelled.
    pub fn spelled(&self) -> &Name {
        &self.query.name
    }

    /// Records of the name asked for.
    pub fn records(&self, data: Vec<RData>, seconds: u32) -> Vec<Record> {
        let record = |data| Record::from_rdata(self.query.name.clone(), seconds, data);
        data.into_iter().map(record).collect()
    }

    /// Writes an answer. One that doesn't fit says so, which makes the asker come over TCP.
    pub fn reply(&self, reply: &Reply, tcp: bool) -> Vec<u8> {
        let limit = match (tcp, self.payload) {
            (true, _) => MAX_MESSAGE,
            (false, None) => 512,
            (false, Some(payload)) => usize::from(payload.clamp(512, UDP_PAYLOAD)),
        };
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = reply.ours;
        message.metadata.response_code = reply.code;
        message.queries = vec![self.query.clone()];
        if self.payload.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            edns.set_dnssec_ok(self.dnssec);
            if reply.filtered {
                let info = EXTENDED_ERROR.1.to_be_bytes().to_vec();
                edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR.0, info));
            }
            message.edns = Some(edns);
        }
        let mut bare = message.clone();
        message.answers = reply.answers.clone();
        message.authorities = reply.authorities.clone();
        if let Some(bytes) = encode(&message, limit) {
            return bytes;
        }
        match tcp {
            // There is no larger message than that of TCP.
            true => bare.metadata.response_code = ResponseCode::ServFail,
            false => bare.metadata.truncation = true,
        }
        bare.to_vec().unwrap_or_else(|_| error(self.id, OpCode::Query, ResponseCode::ServFail))
    }
}

/// A message of at most `limit` bytes; `None`: it is longer.
fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(MAX_MESSAGE as u16);
    message.emit(&mut encoder).ok()?;
    // Cut short by the encoder: the flag is the third byte's second bit.
    let cut = bytes.get(2).is_none_or(|flags| flags & 2 != 0);
    (!cut && bytes.len() <= limit).then_some(bytes)
}

/// A question for a server outside.
pub fn question(id: u16, name: &Name, kind: RecordType, edns: Option<bool>) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(name.clone(), kind)];
    message.edns = edns.map(|dnssec| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        edns.set_dnssec_ok(dnssec);
        edns
    });
    message.to_vec().ok()
}

/// Reads a server's answer to [`question`]; `None`: it is not one.
pub fn answer(packet: &[u8], id: u16, name: &Name, kind: RecordType) -> Option<Message> {
    let header = packet.get(..HEADER)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if word(0) != id || word(2) & 0x8000 == 0 || word(4) > 1 {
        return None;
    }
    let message = Message::from_vec(packet).ok()?;
    let same = |query: &Query| {
        query.name == *name && query.query_type == kind && query.query_class == DNSClass::IN
    };
    // A server that doesn't understand need not repeat the question.
    let understood =
        !matches!(message.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
    match message.queries.first() {
        Some(query) => same(query).then_some(message),
        None => (!understood).then_some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, TXT};
    use proptest::prelude::*;

    fn packet(name: &str, kind: RecordType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), kind)];
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn parsed(packet: &[u8]) -> Question {
        match parse(packet) {
            Parsed::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    fn code(packet: &[u8]) -> ResponseCode {
        match parse(packet) {
            Parsed::Wrong(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        }
    }

    fn many(count: usize) -> Reply {
        let name = Name::from_ascii("Web.Example.").unwrap();
        let record = || Record::from_rdata(name.clone(), 5, RData::A(A::new(192, 0, 2, 1)));
        Reply {
            answers: std::iter::repeat_with(record).take(count).collect(),
            ..Reply::empty(ResponseCode::NoError)
        }
    }

    #[test]
    fn a_question_is_answered_as_it_was_spelled() {
        let question = parsed(&packet("Web.Example.", RecordType::A, |_| ()));
        assert_eq!(question.name, "web.example");
        let reply = Message::from_vec(&question.reply(&many(1), false)).unwrap();
        assert_eq!(reply.queries[0].name.to_ascii(), "Web.Example.");
        assert_eq!((reply.metadata.id, reply.answers.len()), (7, 1));
        assert!(reply.edns.is_none());
    }

    #[test]
    fn long_answers_are_truncated_over_udp_alone() {
        let bare = parsed(&packet("web.example.", RecordType::A, |_| ()));
        let edns = parsed(&packet("web.example.", RecordType::A, |message| {
            let mut edns = Edns::new();
            edns.set_max_payload(60_000);
            message.edns = Some(edns);
        }));
        for (question, count, limit) in [(&bare, 100, 512), (&edns, 1000, 1232)] {
            let bytes = question.reply(&many(count), false);
            let message = Message::from_vec(&bytes).unwrap();
            assert!(message.metadata.truncation && bytes.len() <= limit);
            let message = Message::from_vec(&question.reply(&many(count), true)).unwrap();
            assert_eq!(message.answers.len(), count);
            assert!(!message.metadata.truncation);
        }
        let message = Message::from_vec(&edns.reply(&many(10_000), true)).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
        assert!(message.answers.is_empty());
    }

    #[test]
    fn what_is_no_question_of_data_is_an_error() {
        let a = RecordType::A;
        for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT] {
            assert_eq!(code(&packet("a.", kind, |_| ())), ResponseCode::NotImp, "{kind}");
        }
        let update = packet("a.", a, |message| message.metadata.op_code = OpCode::Update);
        assert_eq!(code(&update), ResponseCode::NotImp);
        let chaos = packet("a.", a, |message| message.queries[0].query_class = DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let newer = packet("a.", a, |message| {
            let mut edns = Edns::new();
            edns.set_version(1);
            message.edns = Some(edns);
        });
        assert_eq!(u16::from(code(&newer)), 16, "bad version");
        let two = packet("a.", a, |message| message.queries.push(message.queries[0].clone()));
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut claims = packet("a.", a, |_| ());
        claims[4..6].fill(0xff);
        assert_eq!(code(&claims), ResponseCode::FormErr);
        // A name that points to itself.
        let looping = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[0xc0, 12, 0, 1, 0, 1][..]].concat();
        assert_eq!(code(&looping), ResponseCode::FormErr);
        let answer = packet("a.", a, |message| {
            message.metadata.message_type = MessageType::Response;
        });
        assert!(matches!(parse(&answer), Parsed::Ignore));
        assert!(matches!(parse(&[0; 11]), Parsed::Ignore));
    }

    #[test]
    fn answers_to_another_question_are_none() {
        let name = Name::from_ascii("a.example.").unwrap();
        let reply = |name: &str, kind, id| {
            let mut message = Message::response(id, OpCode::Query);
            message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), kind)];
            message.to_vec().unwrap()
        };
        let a = RecordType::A;
        assert!(answer(&reply("A.Example.", a, 7), 7, &name, a).is_some());
        assert!(answer(&reply("a.example.", a, 8), 7, &name, a).is_none());
        assert!(answer(&reply("b.example.", a, 7), 7, &name, a).is_none());
        assert!(answer(&reply("a.example.", RecordType::AAAA, 7), 7, &name, a).is_none());
        assert!(answer(&question(7, &name, a, None).unwrap(), 7, &name, a).is_none());
        assert!(answer(&error(7, OpCode::Query, ResponseCode::FormErr), 7, &name, a).is_some());
        assert!(answer(&error(7, OpCode::Query, ResponseCode::NXDomain), 7, &name, a).is_none());
    }

    proptest! {
        #[test]
        fn packets_never_panic(bytes: Vec<u8>, flip in 0usize..60, value: u8) {
            parse(&bytes);
            let mut damaged = packet("www.example.com.", RecordType::A, |message| {
                message.edns = Some(Edns::new());
            });
            if let Some(byte) = damaged.get_mut(flip) {
                *byte = value;
            }
            if let Parsed::Question(question) = parse(&damaged) {
                let reply = question.reply(&many(3), false);
                prop_assert!(Message::from_vec(&reply).is_ok());
            }
            let name = Name::from_ascii("www.example.com.").unwrap();
            answer(&damaged, 7, &name, RecordType::A);
            answer(&bytes, 7, &name, RecordType::A);
        }

        #[test]
        fn any_record_can_be_answered(data: Vec<u8>) {
            let question = parsed(&packet("a.", RecordType::TXT, |_| ()));
            let text = RData::TXT(TXT::from_bytes(vec![&data[..data.len().min(255)]]));
            let reply = Reply {
                answers: question.records(vec![text], 1),
                ..Reply::empty(ResponseCode::NoError)
            };
            prop_assert!(Message::from_vec(&question.reply(&reply, true)).is_ok());
        }
    }
}
