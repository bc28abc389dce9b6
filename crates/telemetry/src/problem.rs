//! Problem reports: RFC 9457 problem+json with one entry per thing that was wrong.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Why a request was refused: the answer of the admin and REST interfaces, and what the command line prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// What kind of problem, as a URI reference; `about:blank` when the status says it all (RFC 9457, 3.1.1).
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// HTTP status.
    pub status: u16,
    /// What was attempted and that it failed.
    pub title: String,
    /// What to know beyond the title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Every value that was wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One value that was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// The flag or key, `--queues` or `volumes[2].size`.
    pub field: String,
    /// The value as it was given.
    pub value: String,
    /// What is wrong with it.
    pub detail: String,
    /// What to do instead; may be empty.
    #[serde(default)]
    pub remedy: String,
}

fn about_blank() -> String {
    "about:blank".to_string()
}

impl Problem {
    /// A problem with HTTP status `status`.
    pub fn new(status: StatusCode, title: impl Into<String>) -> Problem {
        Problem {
            kind: about_blank(),
            status: status.as_u16(),
            title: title.into(),
            detail: None,
            errors: Vec::new(),
        }
    }

    /// 400: the input is wrong; `errors` says everything that is.
    pub fn invalid(title: impl Into<String>, errors: Vec<FieldError>) -> Problem {
        Problem { errors, ..Problem::new(StatusCode::BAD_REQUEST, title) }
    }

    /// 404: there is no such thing.
    pub fn not_found(title: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, title)
    }

    /// 409: what is asked contradicts what is there.
    pub fn conflict(title: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, title)
    }

    /// 500: the daemon or its host failed.
    pub fn internal(title: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, title)
    }

    /// Adds what to know beyond the title.
    pub fn detail(mut self, detail: impl Into<String>) -> Problem {
        self.detail = Some(detail.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.title)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        for error in &self.errors {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} `{}`: {}", self.field, self.value, self.detail)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}
