//! `exec`.

use container_api::apiserver::{Request, SLOW};

use super::ssh_agent;
use crate::args::container::Exec;
use crate::attach::conversation::{Program, begin_wait, converse};
use crate::attach::signals::Signals;
use crate::attach::{Attachment, check_terminal};
use crate::failure::{Failure, Outcome, print_line};
use crate::session::Session;

/// Starts another process and, unless detached, stays to its end.
pub async fn exec(session: &Session, args: &Exec) -> Outcome {
    let (id, arguments) = args.target()?;
    let process = args.process.options(arguments, |name| std::env::var_os(name))?;
    let (interactive, terminal) = (process.interactive, process.terminal);
    let attachment = match args.detach {
        true => Attachment::none(terminal),
        false => {
            check_terminal(interactive, terminal)?;
            Attachment::new(interactive, terminal)
                .map_err(|e| Failure::io("making the streams", e))?
        }
    };
    let mut signals = Signals::forwarded().map_err(|e| Failure::io("taking signals", e))?;
    let mut client = session.connect()?;
    let request = Request::Exec {
        id: id.clone(),
        process,
        stdio: attachment.stdio(),
        size: attachment.size(),
        ssh_agent: ssh_agent(),
    };
    let far = attachment.far();
    let process_id: String = tokio::select! {
        answer = client.call(&request, &far, Some(SLOW)) => answer?,
        signal = signals.next() => return Err(Failure::interrupted(signal)),
    };
    drop((client, far));
    if args.detach {
        return print_line(&id).map(|()| 0);
    }
    session.debug(format_args!("{process_id} runs"));
    let program = Program { id, process_id: Some(process_id), ours: false };
    let wait = begin_wait(session, &program);
    let running = attachment.begin().map_err(|e| Failure::io("attaching", e))?;
    converse(session, &program, running, &mut signals, wait).await
}
