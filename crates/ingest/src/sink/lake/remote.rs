//! An object store as the place of a lake: its client, names that are given once, errors with a way out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::MicrosoftAzureBuilder,
    client::{HttpError, HttpErrorKind},
    gcp::GoogleCloudStorageBuilder,
    path::Path,
};

/// Never removed: by it a store shows that it keeps a name that is taken.
const CREATE_ONLY: &str = "create-only";
/// What is shown of an answer that is no error document.
const SHOWN_MAX: usize = 300;

/// What is particular to a lake on an object store.
pub(super) struct Remote {
    /// Its URL, as configured.
    url: String,
    /// The store cannot put only where nothing is, and the operator said so: look, then put.
    looks_first: bool,
    /// True once the store has kept a name that was taken.
    keeps_names: AtomicBool,
}

/// Why the store did not do what it was asked to.
pub(super) enum Refused {
    /// In its own words.
    Store(Error),
    /// It puts over what is there.
    Overwrites,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// A client for `url`, and where the lake begins in it. Makes no request.
pub(super) fn open(
    url: &str,
    options: &toml::Table,
) -> Result<(Arc<dyn ObjectStore>, Path, Remote), String> {
    // reqwest brings no crypto provider of its own. An error says that one is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let parsed = url::Url::parse(url).map_err(|e| e.to_string())?;
    let unknown = || "write a folder, file://, s3://, gs:// or az://".to_owned();
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|_| unknown())?;
    // The sink waits and retries by itself, and says so in `status` meanwhile.
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(20),
        ..RetryConfig::default()
    };
    let mut looks_first = false;
    macro_rules! builder {
        ($builder:ty) => {{
            let mut builder = <$builder>::from_env().with_url(url).with_retry(retry);
            for (key, value) in options {
                let known = key.to_ascii_lowercase().parse();
                let known = known.map_err(|_| format!("unknown store option {key:?}"))?;
                builder = builder.with_config(known, text(value));
            }
            builder
        }};
    }
    let build = |e: Error| e.to_string();
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let builder = builder!(AmazonS3Builder);
            let put = builder.get_config_value(&AmazonS3ConfigKey::ConditionalPut);
            looks_first = put.is_some_and(|how| how.eq_ignore_ascii_case("disabled"));
            Arc::new(builder.build().map_err(build)?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            Arc::new(builder!(GoogleCloudStorageBuilder).build().map_err(build)?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            Arc::new(builder!(MicrosoftAzureBuilder).build().map_err(build)?)
        }
        _ => return Err(unknown()),
    };
    if looks_first {
        tracing::warn!(
            url,
            "aws_conditional_put is disabled: names are looked up before a file is put, and a second \
             server with this log's id could put over it in between"
        );
    }
    let remote = Remote { url: url.to_owned(), looks_first, keeps_names: AtomicBool::new(false) };
    Ok((store, path, remote))
}

fn text(value: &toml::Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    }
}

impl Remote {
    /// Puts a file in one request where nothing is; false where its name was taken.
    pub async fn create(
        &self,
        objects: &dyn ObjectStore,
        staging: &Path,
        path: &Path,
        bytes: Bytes,
    ) -> Result<bool, Refused> {
        if self.looks_first {
            return match objects.head(path).await {
                Ok(_) => Ok(false),
                Err(Error::NotFound { .. }) => {
                    objects.put_opts(path, bytes.into(), PutMode::Overwrite.into()).await?;
                    Ok(true)
                }
                Err(error) => Err(error.into()),
            };
        }
        self.check_keeps_names(objects, staging).await?;
        Ok(put_where_nothing_is(objects, path, bytes.into()).await?)
    }

    /// Whether the store takes writes, and as this lake needs them.
    pub async fn probe(&self, objects: &dyn ObjectStore, staging: &Path) -> Result<(), Refused> {
        let payload = PutPayload::from_static(b"tidegate\n");
        objects
            .put_opts(&staging.clone().join("probe"), payload, PutMode::Overwrite.into())
            .await?;
        if self.looks_first {
            return Ok(());
        }
        self.check_keeps_names(objects, staging).await
    }

    /// There are stores that read past `If-None-Match` and put over what is there: asked once, in two
    /// requests at most, before the first file.
    async fn check_keeps_names(
        &self,
        objects: &dyn ObjectStore,
        staging: &Path,
    ) -> Result<(), Refused> {
        if self.keeps_names.load(Ordering::Acquire) {
            return Ok(());
        }
        let path = staging.clone().join(CREATE_ONLY);
        for _ in 0..2 {
            let payload = PutPayload::from_static(b"tidegate\n");
            if !put_where_nothing_is(objects, &path, payload).await? {
                self.keeps_names.store(true, Ordering::Release);
                return Ok(());
            }
        }
        Err(Refused::Overwrites)
    }

    /// What went wrong, how to mend it where that is known, and the store's own words.
    pub fn explain(&self, refused: &Refused) -> String {
        let error = match refused {
            Refused::Overwrites => {
                return format!(
                    "the store of {} ignores If-None-Match and would put over a file that is there: \
                     use a version that keeps it, or accept that names are only looked up first, with \
                     `store = {{ aws_conditional_put = \"disabled\" }}` in the sink's options",
                    self.url
                );
            }
            Refused::Store(error) => error,
        };
        let said = error.to_string();
        let shown = shorten(&said);
        match way_out(error, &said) {
            Some(way_out) => format!("{way_out} ({}: {shown})", self.url),
            None => shown,
        }
    }
}

/// False where something is there. S3 says 412; 409 where another request for this name is under
/// way: what is there then is looked at, and where nothing is the file is tried again.
async fn put_where_nothing_is(
    objects: &dyn ObjectStore,
    path: &Path,
    payload: PutPayload,
) -> Result<bool, Error> {
    match objects.put_opts(path, payload, PutMode::Create.into()).await {
        Ok(_) => Ok(true),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an answer means to an operator: words in it, and what to do.
const WAYS_OUT: &[(&[&str], &str)] = &[
    (
        &["NoSuchBucket", "ContainerNotFound"],
        "there is no such bucket: make it, or mend the sink's url, region or endpoint",
    ),
    (
        &["InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"],
        "the store does not know these credentials: mend AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and \
         the region, in the environment or as the sink's options.store",
    ),
    (
        &["ExpiredToken", "InvalidToken", "InvalidClientTokenId"],
        "the session's credentials are over: give new ones (AWS_SESSION_TOKEN among them) and restart",
    ),
    (
        &["/latest/api/token", "/latest/meta-data/", "//169.254.170.2"],
        "there are no credentials, and no instance or task gives any: set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, or the sink's options.store (docs/lake.md has all ways)",
    ),
    (
        &["without LOCATION", "PermanentRedirect", "IllegalLocationConstraintException"],
        "the bucket is in another region: mend AWS_REGION or options.store.aws_region",
    ),
    (
        &["HTTP error: builder error"],
        "the endpoint is plain HTTP (or no URL): write https://, or allow it with \
         options.store.aws_allow_http = \"true\"",
    ),
    (&["EntityTooLarge"], "a file is too large for one request: lower flush.bytes"),
];

fn way_out(error: &Error, said: &str) -> Option<&'static str> {
    let known = WAYS_OUT.iter().find(|(words, _)| words.iter().any(|word| said.contains(word)));
    known.map(|(_, way_out)| *way_out).or_else(|| match (error, http_kind(error)) {
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) => Some(
            "these credentials may not do that: they need s3:PutObject, s3:GetObject and \
             s3:ListBucket (or what the store calls these)",
        ),
        (_, Some(HttpErrorKind::Timeout)) => Some(
            "the store took longer than options.store.timeout (30s if absent): raise it, or lower \
             flush.bytes",
        ),
        (_, Some(HttpErrorKind::Connect)) => {
            Some("the store cannot be reached: does it run, and is the endpoint right?")
        }
        _ => None,
    })
}

/// What went wrong below HTTP, if something did: it is not in the error's text.
fn http_kind(error: &Error) -> Option<HttpErrorKind> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        next = error.source();
    }
    None
}

/// One line: of an S3 error document its code and message, of all else the beginning.
fn shorten(said: &str) -> String {
    let inner = |tag: &str| {
        let (_, rest) = said.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inner, _)| inner.trim())
    };
    let line = match (inner("Code"), inner("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => said.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    match line.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn remote() -> Remote {
        let url = "s3://b/lake".to_owned();
        Remote { url, looks_first: false, keeps_names: AtomicBool::new(false) }
    }

    fn error(said: &str) -> Error {
        Error::Generic { store: "S3", source: said.to_owned().into() }
    }

    #[test]
    fn an_answer_is_told_with_the_way_out_and_without_its_markup() {
        let said = "non-2xx: 404: <Error><Code>NoSuchBucket</Code>\n<Message>The bucket is not there</Message></Error>";
        let told = remote().explain(&Refused::Store(error(said)));
        assert!(told.starts_with("there is no such bucket: make it"), "{told}");
        assert!(told.ends_with("(s3://b/lake: NoSuchBucket: The bucket is not there)"), "{told}");
        let told = remote().explain(&Refused::Store(error("HTTP error:\n   who knows")));
        assert_eq!(told, "Generic S3 error: HTTP error: who knows");
        let long = remote().explain(&Refused::Store(error(&"ü".repeat(1_000))));
        assert_eq!(long.chars().count(), SHOWN_MAX + 1);
    }

    #[tokio::test]
    async fn a_store_that_keeps_names_is_asked_once_and_a_taken_name_is_told() {
        let (store, remote, staging) = (InMemory::new(), remote(), Path::from("lake/staging"));
        let (path, bytes) = (Path::from("lake/a"), Bytes::from_static(b"1"));
        let create = || remote.create(&store, &staging, &path, bytes.clone());
        assert!(create().await.ok().unwrap());
        assert!(remote.keeps_names.load(Ordering::Acquire));
        store.delete(&staging.clone().join(CREATE_ONLY)).await.unwrap();
        assert!(!create().await.ok().unwrap());
        let mark = store.head(&staging.join(CREATE_ONLY)).await;
        assert!(matches!(mark, Err(Error::NotFound { .. })), "it was not asked again");
    }

    #[tokio::test]
    async fn where_names_are_only_looked_up_a_taken_one_is_left_as_it_is() {
        let (store, staging) = (InMemory::new(), Path::from("lake/staging"));
        let remote = Remote { looks_first: true, ..remote() };
        let path = Path::from("lake/a");
        for (bytes, created) in [("1", true), ("2", false)] {
            let done = remote.create(&store, &staging, &path, bytes.into()).await;
            assert_eq!(done.ok(), Some(created));
        }
        let there = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(there, "1");
    }
}
