//! Reading back from the rules who is there and what has been dropped.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::rules::{self, Member, Outside};

/// What kind of thing (`set`, `map`, `chain`) of a listed table, by name.
fn things<'a>(table: &'a Value, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let list = table["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(move |entry| {
        let thing = entry.get(kind)?;
        Some((thing["name"].as_str()?, thing))
    })
}

fn elements<'a>(table: &'a Value, kind: &'a str, name: &str) -> &'a [Value] {
    things(table, kind)
        .find(|(found, _)| *found == name)
        .and_then(|(_, thing)| thing["elem"].as_array())
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(super) fn has_chain(table: &Value, name: &str) -> bool {
    things(table, "chain").any(|(found, _)| found == name)
}

fn concatenated(element: &Value) -> Option<[&str; 3]> {
    let [tap, mac, address] = element["concat"].as_array()?.as_slice() else { return None };
    Some([tap.as_str()?, mac.as_str()?, address.as_str()?])
}

fn number(value: &Value) -> Option<u32> {
    match value {
        Value::Number(number) => number.as_u64()?.try_into().ok(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

/// The containers that the rules know. Where what they may reach isn't everything, it is told
/// apart from that only.
pub(super) fn members(bridge: &Value, inet: &Value) -> Vec<(Member, Outside)> {
    let marks: BTreeMap<&str, u32> = elements(bridge, "map", "marks")
        .iter()
        .filter_map(|pair| Some((pair[0].as_str()?, number(&pair[1])?)))
        .collect();
    let globals: BTreeMap<&str, Ipv6Addr> = elements(bridge, "set", "own6")
        .iter()
        .filter_map(concatenated)
        .filter_map(|[tap, _, address]| Some((tap, address.parse::<Ipv6Addr>().ok()?)))
        .filter(|(_, address)| !address.is_unicast_link_local())
        .collect();
    let addresses = elements(bridge, "set", "own4").iter().filter_map(concatenated);
    addresses
        .filter_map(|[tap, mac, address]| {
            let member = Member {
                tap: tap.to_owned(),
                mark: *marks.get(tap)?,
                mac: mac.parse().ok()?,
                ipv4: address.parse::<Ipv4Addr>().ok()?,
                ipv6: *globals.get(tap)?,
            };
            let outside = match has_chain(inet, &format!("e_{tap}")) {
                true => Outside::Only(rules::UNKNOWN.to_vec()),
                false => Outside::Everything,
            };
            Some((member, outside))
        })
        .collect()
}

/// The pins of a container and the seconds that each has left.
pub(super) fn pins(inet: &Value, tap: &str) -> Vec<((IpAddr, Option<u16>), u64)> {
    let mut pins = Vec::new();
    for (set, with_port) in ["p4", "p6", "q4", "q6"].into_iter().zip([false, false, true, true]) {
        for element in elements(inet, "set", &format!("{set}_{tap}")) {
            let (key, left) = (&element["elem"]["val"], element["elem"]["expires"].as_u64());
            let (address, port) = match with_port {
                false => (key, None),
                true => (&key["concat"][0], number(&key["concat"][2])),
            };
            let address = address.as_str().and_then(|text| text.parse().ok());
            let port = port.and_then(|port| u16::try_from(port).ok());
            if let (Some(address), Some(left)) = (address, left)
                && port.is_some() == with_port
            {
                pins.push(((address, port), left));
            }
        }
    }
    pins.sort_unstable();
    pins.dedup_by_key(|(key, _)| *key);
    pins
}

/// What has been dropped of a container, by reason.
pub(super) fn dropped(bridge: &Value, inet: &Value, member: &Member) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut add = |name: &'static str, element: &Value| {
        let packets = element["elem"]["counter"]["packets"].as_u64().unwrap_or(0);
        if packets > 0 {
            *counts.entry(name).or_default() += packets;
        }
    };
    for reason in rules::BRIDGE_REASONS {
        for element in elements(bridge, "set", &format!("n_{reason}")) {
            if element["elem"]["val"].as_str() == Some(&member.tap) {
                add(reason, element);
            }
        }
    }
    for reason in rules::ROUTE_REASONS {
        for element in elements(inet, "set", &format!("n_{reason}")) {
            if number(&element["elem"]["val"]) == Some(member.mark) {
                add(reason, element);
            }
        }
    }
    counts.into_iter().map(|(reason, packets)| (reason.to_owned(), packets)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(things: &[Value]) -> Value {
        json!({ "nftables": things })
    }

    #[test]
    fn reads_members_back() {
        let bridge = table(&[
            json!({"metainfo": {"version": "1"}}),
            json!({"map": {"name": "marks", "elem": [["t1", 7], ["t2", "0x8"]]}}),
            json!({"set": {"name": "own4", "elem": [
                {"concat": ["t1", "02:00:00:00:00:01", "192.168.64.2"]},
                {"concat": ["t3", "02:00:00:00:00:03", "192.168.64.4"]},
                "odd",
            ]}}),
            json!({"set": {"name": "own6", "elem": [
                {"concat": ["t1", "02:00:00:00:00:01", "fe80::1"]},
                {"concat": ["t1", "02:00:00:00:00:01", "fd00::2"]},
            ]}}),
        ]);
        let inet = table(&[json!({"chain": {"name": "e_t1"}})]);
        let found = members(&bridge, &inet);
        assert_eq!(found.len(), 1, "t3 has no mark");
        let (member, outside) = &found[0];
        assert_eq!((member.tap.as_str(), member.mark), ("t1", 7));
        assert_eq!(member.ipv6.to_string(), "fd00::2");
        assert!(matches!(outside, Outside::Only(_)));
        assert!(members(&Value::Null, &Value::Null).is_empty());
    }

    #[test]
    fn reads_pins_back() {
        let inet = table(&[
            json!({"set": {"name": "p4_t1", "elem": [
                {"elem": {"val": "1.2.3.4", "timeout": 20, "expires": 19}},
            ]}}),
            json!({"set": {"name": "q6_t1", "elem": [
                {"elem": {"val": {"concat": ["2001:db8::1", "tcp", 80]}, "expires": 5}},
                {"elem": {"val": {"concat": ["2001:db8::1", "udp", 80]}, "expires": 6}},
                {"elem": {"val": {"concat": ["nonsense"]}, "expires": 6}},
            ]}}),
        ]);
        let found = pins(&inet, "t1");
        let expected = [
            (("1.2.3.4".parse().expect("an address"), None), 19),
            (("2001:db8::1".parse().expect("an address"), Some(80)), 5),
        ];
        assert_eq!(found, expected);
    }
}
