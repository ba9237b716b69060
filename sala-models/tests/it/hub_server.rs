//! A hub on this machine: the addresses that a client asks for, with what a test wants to go wrong.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// The only model there is.
pub(crate) const ID: &str = "acme/tiny";
/// Its commits, and the branches that they are at.
pub(crate) const MAIN: &str = "1111111111111111111111111111111111111111";
pub(crate) const OTHER: &str = "2222222222222222222222222222222222222222";

/// What a client sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next()?, words.next()?);
        let mut headers = BTreeMap::new();
        for line in lines {
            match line.ok()?.split_once(':') {
                Some((name, value)) => {
                    headers.insert(name.to_lowercase(), value.trim().to_owned());
                }
                None => break,
            }
        }
        Some(Self {
            method,
            path,
            headers,
        })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What it gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// After how many bytes of the body the connection is closed.
    pub(crate) cut: Option<usize>,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            body,
            ..Self::default()
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn redirect(to: String) -> Self {
        Self::new(302, "").with("Location", to)
    }

    /// A file, or the part of it that the request asks for.
    pub(crate) fn of_file(request: &Request, bytes: &[u8]) -> Self {
        let range = request.header("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
        });
        match range {
            Some((from, to)) => Self::new(206, &bytes[from..=to]).with(
                "Content-Range",
                format!("bytes {from}-{to}/{}", bytes.len()),
            ),
            None => Self::new(200, bytes),
        }
    }

    fn write(&self, stream: &mut TcpStream, head: bool) -> std::io::Result<()> {
        write!(
            stream,
            "HTTP/1.1 {} Said\r\nConnection: close\r\n",
            self.status
        )?;
        write!(stream, "Content-Length: {}\r\n", self.body.len())?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        if !head {
            let end = self.cut.unwrap_or(self.body.len()).min(self.body.len());
            stream.write_all(&self.body[..end])?;
        }
        stream.flush()
    }
}

type Answer = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// A server that answers until it is dropped, and remembers what it was asked.
pub(crate) struct Server {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let answer: Answer = Arc::new(answer);
        let stop = Arc::<AtomicBool>::default();
        let (over, log) = (Arc::clone(&stop), Arc::clone(&requests));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let Some(request) = Request::read(&stream) else {
                    continue;
                };
                log.lock().unwrap().push(request.clone());
                // A client may have gone away.
                let _ = answer(&request).write(&mut stream, request.method == "HEAD");
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Self {
            address,
            requests,
            over: stop,
            thread: Some(thread),
        }
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The bodies that were asked for of files with that ending: from which byte on.
    pub(crate) fn ranges(&self, ending: &str) -> Vec<Option<String>> {
        let all = self.requests().into_iter();
        all.filter(|request| request.method == "GET" && request.path.ends_with(ending))
            .map(|request| request.header("range").map(str::to_owned))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It waits for somebody to come.
        drop(TcpStream::connect(
            self.address.trim_start_matches("http://"),
        ));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The files of a repository: names and contents.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What a hub answers for [`ID`] with these files at [`MAIN`]; at [`OTHER`], which is the branch `other`, the
/// configuration is another.
pub(crate) fn hub(files: &Files, request: &Request) -> Response {
    let api = format!("/api/models/{ID}");
    let json = |value: serde_json::Value| {
        Response::new(200, value.to_string()).with("Content-Type", "application/json")
    };
    let info = |sha: &str| json(serde_json::json!({"id": ID, "sha": sha}));
    let path = request.path.as_str();
    if let Some(rest) = path.strip_prefix(&api) {
        return match rest {
            "" | "/revision/main" | "/revision/1111111111111111111111111111111111111111" => {
                info(MAIN)
            }
            "/revision/other" => info(OTHER),
            _ if rest.starts_with("/tree/") => {
                let entries = files.iter().map(|(name, bytes)| {
                    serde_json::json!({"type": "file", "oid": "0", "path": name, "size": bytes.len()})
                });
                let folder = serde_json::json!({"type": "directory", "oid": "0", "path": "onnx"});
                json(entries.chain([folder]).collect())
            }
            _ => missing("RevisionNotFound"),
        };
    }
    let Some(rest) = path.strip_prefix(&format!("/{ID}/resolve/")) else {
        return missing("RepoNotFound");
    };
    let (commit, name) = rest.split_once('/').unwrap();
    match files.get(name) {
        Some(_) if commit == OTHER && name == "config.json" => {
            Response::of_file(request, &vec![b' '; files[name].len()])
        }
        Some(bytes) => Response::of_file(request, bytes),
        None => missing("EntryNotFound"),
    }
}

fn missing(code: &str) -> Response {
    Response::new(404, "").with("X-Error-Code", code)
}
