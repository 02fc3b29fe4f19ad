//! `--otlp URL`: lines as log records of OpenTelemetry, sent to a collector by OTLP/HTTP with its
//! JSON encoding.
//!
//! One request at a time and one connection each, without TLS: a collector runs beside the service
//! and passes records on as its operator likes. What a collector is too busy for is sent again.

use std::time::{Duration, SystemTime};

use container_api::escape::escape;
use container_api::{ApiError, ErrorCode, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Line;

/// Of OTLP/HTTP.
const PORT: u16 = 4318;
const PATH: &str = "/v1/logs";
/// Most records in one request.
const BATCH: usize = 512;
/// For a connection and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A request is sent so many times, and the pause between the first two.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest answer that is read in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collector {
    /// `host:port`, also the header's.
    authority: String,
    path: String,
}

/// Why a request was not taken.
enum Refusal {
    /// It may be later.
    Busy(String),
    Final(String),
}

impl Collector {
    /// `http://HOST[:PORT][/PATH]`; the port is 4318 and the path `/v1/logs` where none is said.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else.
    pub(super) fn parse(url: &str) -> Result<Collector> {
        let wrong = |what: &str| ApiError::invalid(format!("--otlp {}: {what}", escape(url)));
        let Some(rest) = url.strip_prefix("http://") else {
            return Err(wrong(
                "begins with http://; a collector on this host may pass records on with TLS",
            ));
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain(rest) || authority.contains('@') || path.contains('#') {
            return Err(wrong("a host, a port and a path are all it may have"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| wrong("no port"))?)
            }
            _ => (authority, PORT),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) {
            return Err(wrong("no host"));
        }
        let path = if path.len() > 1 { path } else { PATH };
        Ok(Collector { authority: format!("{host}:{port}"), path: path.to_owned() })
    }

    /// Sends all lines, in order.
    ///
    /// # Errors
    /// `Unavailable` when the collector does not answer or refuses; some may have been sent.
    pub(super) async fn send(&self, lines: &[Line]) -> Result<()> {
        for batch in lines.chunks(BATCH) {
            let body = document(batch, SystemTime::now()).to_string();
            let mut pause = PAUSE;
            let mut attempt = 1;
            loop {
                match self.post(&body).await {
                    Ok(()) => break,
                    Err(Refusal::Busy(_)) if attempt < ATTEMPTS => {}
                    Err(Refusal::Busy(why) | Refusal::Final(why)) => {
                        let message =
                            format!("the collector at {}: {}", self.authority, escape(&why));
                        return Err(ApiError::new(ErrorCode::Unavailable, message));
                    }
                }
                sleep(pause).await;
                pause *= 2;
                attempt += 1;
            }
        }
        Ok(())
    }

    async fn post(&self, body: &str) -> std::result::Result<(), Refusal> {
        match timeout(PATIENCE, self.exchange(body)).await {
            Err(_) => Err(Refusal::Busy(format!("no answer within {} s", PATIENCE.as_secs()))),
            Ok(Err(error)) => Err(Refusal::Busy(error.to_string())),
            Ok(Ok(answer)) => judge(&answer),
        }
    }

    async fn exchange(&self, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.authority).await?;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.path,
            self.authority,
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// What an answer says: 2xx with rejected records is a refusal, too, and not to be repeated.
fn judge(answer: &str) -> std::result::Result<(), Refusal> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    let code: Option<u16> =
        status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    match code {
        Some(200..=299) => {}
        Some(429 | 502..=504) => return Err(Refusal::Busy(status.to_owned())),
        Some(_) => return Err(Refusal::Final(status.to_owned())),
        None => return Err(Refusal::Final("what answers there does not speak HTTP".into())),
    }
    // The body may come in chunks, with their lengths around it.
    let json = body.find('{').zip(body.rfind('}')).and_then(|(from, to)| body.get(from..=to));
    let said: Value = json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    let partial = &said["partialSuccess"];
    let rejected = match &partial["rejectedLogRecords"] {
        Value::String(number) => number.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    };
    match rejected {
        0 => Ok(()),
        number => {
            let why = partial["errorMessage"].as_str().unwrap_or_default();
            Err(Refusal::Final(format!("{number} records were rejected: {why}")))
        }
    }
}

/// An `ExportLogsServiceRequest`: records of one process after another that came in a row share a
/// resource.
fn document(lines: &[Line], now: SystemTime) -> Value {
    let same = |a: &Line, b: &Line| a.process == b.process && a.subsystem == b.subsystem;
    let resources: Vec<Value> = lines
        .chunk_by(same)
        .map(|lines| {
            let records: Vec<Value> = lines.iter().map(|line| record(line, now)).collect();
            json!({
                "resource": {"attributes": [attribute("service.name", &lines[0].process)]},
                "scopeLogs": [{"scope": {"name": lines[0].subsystem}, "logRecords": records}],
            })
        })
        .collect();
    json!({ "resourceLogs": resources })
}

fn record(line: &Line, now: SystemTime) -> Value {
    let attributes = [("container.id", &line.container), ("log.category", &line.category)];
    let attributes: Vec<Value> = attributes
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| attribute(key, value))
        .collect();
    let mut record = json!({
        "observedTimeUnixNano": nanoseconds(now),
        "severityNumber": severity(&line.level),
        "severityText": line.level,
        "body": {"stringValue": line.message.trim_start()},
        "attributes": attributes,
    });
    if let Some(at) = line.at {
        record["timeUnixNano"] = nanoseconds(at.0).into();
    }
    record
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64-bit numbers are strings in the JSON encoding.
fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

/// A `SeverityNumber`; 0 for a line that has no level.
fn severity(level: &str) -> u8 {
    match level {
        "TRACE" => 1,
        "DEBUG" => 5,
        "INFO" => 9,
        "WARN" => 13,
        "ERROR" => 17,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(process: &str, level: &str, message: &str) -> Line {
        let at = SystemTime::UNIX_EPOCH + Duration::new(5, 7);
        Line {
            at: Some(container_api::types::Timestamp(at)),
            order: at,
            process: process.into(),
            subsystem: "container_x".into(),
            category: String::new(),
            level: level.into(),
            container: "web".into(),
            message: message.into(),
            text: String::new(),
        }
    }

    #[test]
    fn a_url_names_a_collector() {
        for (url, authority, path) in [
            ("http://localhost", "localhost:4318", "/v1/logs"),
            ("http://10.0.0.1:80/", "10.0.0.1:80", "/v1/logs"),
            ("http://[::1]/my/logs?x=1", "[::1]:4318", "/my/logs?x=1"),
            ("http://[::1]:7", "[::1]:7", "/v1/logs"),
        ] {
            let expected = Collector { authority: authority.into(), path: path.into() };
            assert_eq!(Collector::parse(url), Ok(expected), "{url}");
        }
        for url in [
            "",
            "localhost:4318",
            "https://a",
            "http://",
            "http://:80",
            "http://a:x",
            "http://a:99999",
            "http://u@a",
            "http://a b",
            "http://a/\r\nX: y",
            "http://::1",
        ] {
            let error = Collector::parse(url).unwrap_err();
            assert!(error.message.starts_with("--otlp "), "{error}");
        }
    }

    #[test]
    fn records_are_grouped_by_process() {
        let lines = [
            line("a", "INFO", " up"),
            line("a", "WARN", "b"),
            line("b", "", "c"),
            line("a", "x", "d"),
        ];
        let made = document(&lines, SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        let resources = made["resourceLogs"].as_array().unwrap();
        let names: Vec<_> = resources
            .iter()
            .map(|one| one["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["a", "b", "a"]);
        assert_eq!(
            resources[0]["scopeLogs"][0],
            json!({"scope": {"name": "container_x"}, "logRecords": [
                {"timeUnixNano": "5000000007", "observedTimeUnixNano": "9000000000",
                 "severityNumber": 9, "severityText": "INFO", "body": {"stringValue": "up"},
                 "attributes": [{"key": "container.id", "value": {"stringValue": "web"}}]},
                {"timeUnixNano": "5000000007", "observedTimeUnixNano": "9000000000",
                 "severityNumber": 13, "severityText": "WARN", "body": {"stringValue": "b"},
                 "attributes": [{"key": "container.id", "value": {"stringValue": "web"}}]},
            ]})
        );
    }

    #[test]
    fn an_answer_says_whether_all_were_taken() {
        let partial = r#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}"#;
        let chunked = format!("HTTP/1.1 200 OK\r\n\r\n4a\r\n{partial}\r\n0\r\n\r\n");
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", None),
            ("HTTP/1.0 202 Accepted\r\n\r\n", None),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some((true, "503"))),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", Some((false, "400 Bad"))),
            (&chunked, Some((false, "2 records were rejected: too old"))),
            ("SSH-2.0", Some((false, "does not speak HTTP"))),
            ("", Some((false, "does not speak HTTP"))),
        ] {
            let judged = judge(answer).err().map(|refusal| match refusal {
                Refusal::Busy(why) => (true, why),
                Refusal::Final(why) => (false, why),
            });
            match (judged, expected) {
                (None, None) => {}
                (Some((busy, why)), Some((expected, words))) => {
                    assert!(busy == expected && why.contains(words), "{answer}: {why}");
                }
                other => panic!("{answer}: {other:?}"),
            }
        }
    }
}
