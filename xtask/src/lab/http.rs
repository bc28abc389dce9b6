//! HTTP as a test or the demo speaks it: one request, one answer.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null when it is empty.
    pub fn json(&self) -> anyhow::Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

/// Sends one request and returns whatever comes back.
pub fn request(
    server: SocketAddr,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server)
            .await
            .with_context(|| format!("connecting to {server}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", server.to_string())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    })
}

/// Sends one request that has to succeed and returns its JSON.
pub fn call(server: SocketAddr, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let answer = request(server, method.clone(), path, body)?;
    ensure!(answer.status.is_success(), "{method} {path}: status {}: {}", answer.status, answer.body);
    answer.json()
}

/// A scrape of a Prometheus endpoint.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Scrapes `server`.
    pub fn scrape(server: SocketAddr) -> anyhow::Result<Metrics> {
        let answer = request(server, Method::GET, "/metrics", None)?;
        ensure!(answer.status.is_success(), "GET /metrics: status {}", answer.status);
        Ok(Metrics(answer.body))
    }

    /// The text itself.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Sum of the metric `name` over all series that carry `labels`; None when there is no such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let series = self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (metric, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
            let fits = metric == name && wanted.iter().all(|label| labels.contains(&label.as_str()));
            fits.then(|| value.parse::<f64>().ok())?
        });
        series.reduce(|sum, value| sum + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_label() {
        let text = "# TYPE sluice_a_total counter\n\
                    sluice_a_total{op=\"flush\",volume=\"v0\"} 3\n\
                    sluice_a_total{op=\"flush\",volume=\"v1\"} 4\n\
                    sluice_a_total{op=\"read\",volume=\"v1\"} 1e3\n\
                    sluice_up 1\n";
        let metrics = Metrics(text.into());
        assert_eq!(metrics.sum("sluice_a_total", &[("op", "flush")]), Some(7.0));
        assert_eq!(metrics.sum("sluice_a_total", &[("op", "flush"), ("volume", "v1")]), Some(4.0));
        assert_eq!(metrics.sum("sluice_a_total", &[]), Some(1007.0));
        assert_eq!(metrics.sum("sluice_up", &[]), Some(1.0));
        assert_eq!(metrics.sum("sluice_a_total", &[("op", "discard")]), None);
        assert_eq!(metrics.sum("sluice_a", &[]), None);
    }
}
