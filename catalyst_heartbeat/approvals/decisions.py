"""Requests that a person must decide: how he is asked, and what becomes of his decision.

Only the escalation row's status lets anything run; a denial that left its receipt holds back even
then. An approval is used by one conditional UPDATE and runs what was shown or nothing: card.py.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import psycopg2

from catalyst_heartbeat.approvals import card
from catalyst_heartbeat.approvals.card import Card
from catalyst_heartbeat.executor.decide import Ask, Refuse, bug_as_rejection
from catalyst_heartbeat.executor.job import Agent, Job
from catalyst_heartbeat.executor.run import preview
from catalyst_heartbeat.outcome import Outcome, TaskRejected
from catalyst_heartbeat.queue.claims import DATA_LIMIT_BYTES, Claim
from catalyst_heartbeat.queue.connection import Database, first_line
from catalyst_heartbeat.queue.endings import ANSWER, claim_params, columns, was_ours
from catalyst_heartbeat.redaction import LONGEST_SECRET
from catalyst_heartbeat.report import SUBJECT_LIMIT, Original, Report, report
from catalyst_heartbeat.request import task_name
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.text import INVISIBLE, clean_line, without_end

log = logging.getLogger("heartbeat")

# Approving them cannot make them run, so they must not crowd the phone.
MOST_UNKNOWN = 3
# So many requests of others, the newest, are compared with this agent's.
MOST_COMPARED = 1000
# So much of what the approver says is told.
RECEIPT_LIMIT = 1000

OPEN = """
-- The requests that wait for the approver, each as the task and the parameters that it is about.
-- A pending one counts until it leaves the phone, whatever became of its task; a second tap may set
-- a decided one "approved" once more, which then waits for nothing.
SELECT task.id, card.data ->> 'task',
       task.id IS NOT NULL AND COALESCE(card.data -> 'params' = %(params)s::jsonb, false)
  FROM claude_messages AS card
  LEFT JOIN claude_messages AS task
    ON task.id = card.reply_to_id AND task.msg_type = 'task' AND task.to_agent = %(agent)s
   AND task.status = 'escalated'
   AND CASE WHEN pg_column_size(task.data) <= 2 * %(data_limit)s
            THEN task.data #> '{escalation,id}' END = to_jsonb(card.id)
 WHERE card.msg_type = 'escalation' AND card.from_agent = %(agent)s
   AND card.subject LIKE 'Permission #' || card.reply_to_id || ': %%'
   AND pg_column_size(card.data) <= %(card_limit)s AND card.expires_at > now()
   AND (card.status = 'pending' OR (card.status = 'approved' AND task.id IS NOT NULL))
 ORDER BY card.id
"""

ESCALATE = """
-- processing -> escalated: the request to the approver; the notice to the sender follows.
WITH task AS (
    SELECT id, thread_id
      FROM claude_messages
     WHERE id = %(id)s AND status = 'processing' AND data #>> '{claim,token}' = %(token)s
       FOR NO KEY UPDATE
), card AS (
    INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body, data,
                                 reply_to_id, thread_id, status, expires_at, requires_response)
    SELECT %(agent)s, %(approver)s, 'escalation', 'high', %(card_subject)s, %(card_body)s,
           %(card_data)s::jsonb, id, COALESCE(thread_id, id), 'pending',
           to_timestamp(%(until)s), true
      FROM task
    RETURNING id
), moved AS (
    UPDATE claude_messages AS message
       SET status = 'escalated',
           data = message.data || jsonb_build_object('escalation', jsonb_build_object(
                      'id', card.id, 'digest', %(digest)s, 'why', %(why)s))
      FROM task CROSS JOIN card
     WHERE message.id = task.id
    RETURNING message.id
)
SELECT set_config('heartbeat.moved', COALESCE(
           moved.id, ('request of #' || task.id || ' not stored, a trigger dropped it')::bigint
       )::text, true)
  FROM task LEFT JOIN moved ON true;
"""

WAITING = """
-- The tasks that wait for the approver, each with the escalation that the task itself names.
SELECT task.id, card.id, card.status, card.expires_at > now(), task.subject, left(task.body, 300),
       (SELECT left(COALESCE(receipt.body, ''), %(receipt_read)s) FROM claude_messages AS receipt
         WHERE receipt.msg_type = 'response' AND receipt.from_agent = %(approver)s
           AND receipt.to_agent = %(agent)s AND receipt.status = 'pending'
           AND receipt.subject = 'Denied: ' || card.subject
         ORDER BY receipt.id DESC LIMIT 1),
       card.subject, (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM card.created_at))::float8,
       (EXTRACT(EPOCH FROM card.expires_at) - EXTRACT(EPOCH FROM now()))::float8,
       CASE WHEN pg_column_size(task.data) <= 2 * %(data_limit)s
             AND task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
            THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END
  FROM claude_messages AS task
  LEFT JOIN claude_messages AS card
    ON card.reply_to_id = task.id AND card.from_agent = %(agent)s
   AND card.to_agent = %(approver)s AND card.msg_type = 'escalation'
   AND CASE WHEN pg_column_size(task.data) <= 2 * %(data_limit)s
            THEN task.data #> '{escalation,id}' END = to_jsonb(card.id)
 WHERE task.msg_type = 'task' AND task.to_agent = %(agent)s AND task.status = 'escalated'
 ORDER BY card.id, task.id
"""

END_WAITING = """
-- escalated -> processed or expired, and the escalation -> processed or expired: denied, too late,
-- or the task does not know its request any more, which then leaves the phone as well. Rows that
-- somebody holds are left for a later cycle.
WITH task AS (
    SELECT id
      FROM claude_messages
     WHERE id = %(id)s AND status = 'escalated'
       FOR NO KEY UPDATE SKIP LOCKED
), card AS (
    SELECT id
      FROM claude_messages
     WHERE EXISTS (SELECT FROM task)
       AND ((id = %(card_id)s AND status IS NOT DISTINCT FROM %(seen)s)
         OR (%(card_id)s::bigint IS NULL AND reply_to_id = %(id)s
             AND from_agent = %(agent)s AND msg_type = 'escalation'
             AND status IN ('pending', 'approved', 'denied')))
       FOR NO KEY UPDATE SKIP LOCKED
), decided AS (
    UPDATE claude_messages AS message
       SET status = %(status)s, processed_at = now(),
           data = CASE WHEN pg_column_size(message.data) <= %(card_limit)s
                        AND jsonb_typeof(message.data) = 'object' THEN message.data ELSE '{}' END
                  || jsonb_build_object('decision', %(decision)s)
      FROM card
     WHERE message.id = card.id
    RETURNING message.id
), moved AS (
    UPDATE claude_messages AS message
       SET status = %(status)s, processed_at = now()
      FROM task
     WHERE message.id = task.id
       AND (%(card_id)s::bigint IS NULL OR EXISTS (SELECT FROM decided))
    RETURNING message.id
)
SELECT set_config('heartbeat.moved', COALESCE(
           moved.id, ('end of #' || task.id || ' not stored, a trigger dropped it')::bigint
       )::text, true)
  FROM task LEFT JOIN moved ON true
 WHERE %(card_id)s::bigint IS NULL OR EXISTS (SELECT FROM card);
"""

MARK_RECEIPTS = """
-- pending -> processed: the approver's receipts for this agent's escalations, and nothing else.
-- A denial stays while its task waits and its escalation is decided: it holds an approval back.
WITH receipt AS (
    SELECT id
      FROM claude_messages AS receipt
     WHERE receipt.msg_type = 'response' AND receipt.status = 'pending'
       AND receipt.to_agent = %(agent)s AND receipt.from_agent = %(approver)s
       AND EXISTS (SELECT FROM claude_messages AS card
                    WHERE card.msg_type = 'escalation' AND card.from_agent = %(agent)s
                      AND card.subject LIKE 'Permission #' || card.reply_to_id || ': %%'
                      AND (receipt.subject = 'Approved: ' || card.subject
                        OR receipt.subject = 'Denied: ' || card.subject
                       AND NOT (COALESCE(card.status IN ('approved', 'denied'), false)
                                AND EXISTS (SELECT FROM claude_messages AS task
                                             WHERE task.id = card.reply_to_id
                                               AND task.status = 'escalated'))))
       FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE claude_messages AS message
   SET status = 'processed', read_at = now(), processed_at = now()
  FROM receipt
 WHERE message.id = receipt.id
RETURNING message.id
"""

WITHDRAW = """
-- pending -> expired: an escalation whose task does not wait for it any more leaves the phone, with
-- the next cycle that has something to do. The agent's other programs may ask the approver too:
-- only what has this program's subject is ours.
WITH card AS (
    SELECT id
      FROM claude_messages AS card
     WHERE card.msg_type = 'escalation' AND card.status = 'pending'
       AND card.from_agent = %(agent)s AND card.to_agent = %(approver)s
       AND card.subject LIKE 'Permission #' || card.reply_to_id || ': %%'
       AND NOT EXISTS (SELECT FROM claude_messages AS task
                        WHERE task.id = card.reply_to_id AND task.status = 'escalated'
                          AND task.data #> '{escalation,id}' = to_jsonb(card.id))
       FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE claude_messages AS message
   SET status = 'expired', processed_at = now()
  FROM card
 WHERE message.id = card.id
RETURNING message.id
"""

PENDING_CARDS = """
-- The newest requests that wait for the approver, whoever asks; of a subject what is shown of one.
SELECT id, from_agent, left(subject, %(subject_limit)s), reply_to_id
  FROM claude_messages
 WHERE msg_type = 'escalation' AND to_agent = %(approver)s AND status = 'pending'
 ORDER BY id DESC
 LIMIT %(most)s
"""


class Waiting(NamedTuple):
    """A task that waits for the approver, and its card; None where that is gone.

    `age` and `left`, until it expires, are in seconds.
    """

    id: int
    card_id: int | None
    card_status: str | None
    in_time: bool | None
    subject: str | None
    body_start: str | None
    receipt: str | None
    card_subject: str | None
    age: float | None
    left: float | None
    attempt: int


class Escalation(NamedTuple):
    """The request to the approver and the notice to the sender."""

    card: Card
    notice: Report


def request(question: Ask, agent: Agent) -> Escalation | Refuse:
    """Return how the approver is asked, or why he cannot be."""
    try:
        with bug_as_rejection(question.job.message):
            return escalation(question.job, question.why, agent)
    except TaskRejected as error:
        return Refuse(Outcome("rejected", error=error.told(agent.settings.secrets)))


def escalation(job: Job, why: str, agent: Agent) -> Escalation:
    settings, message = agent.settings, job.message
    check_room(job, agent)
    until = round(message.now + settings.approval_expiry_hours * 3600, 3)
    words = card.shown_words(job, settings)
    asked = card.render(job, why, words, preview(job, agent), until, settings)
    text = f'waits for {settings.approver} as "{asked.subject}" until {card.minute(until)}'
    original = Original(message.id, message.subject, job.name, message.attempt)
    return Escalation(asked, report(original, Outcome("escalated", text), settings))


def check_room(job: Job, agent: Agent) -> None:
    """Raise TaskRejected where the approver has this request, or enough requests, already.

    What can never run takes no place from what could.
    """
    params = {
        "agent": agent.database.agent,
        "params": json.dumps(job.request.params),
        "data_limit": DATA_LIMIT_BYTES,
        "card_limit": card.CARD_LIMIT_BYTES,
    }
    waiting = agent.database.fetch(OPEN, params)
    foreseen = [(None, task, asked == job.request.params) for task, asked in agent.foreseen]
    for message_id, task, same in [*waiting, *foreseen]:
        if task == job.name and same:
            which = f", as message #{message_id}" if message_id else ""
            raise TaskRejected(f"the same request waits for approval already{which}")
    known = sum(task in agent.whitelist for _, task, _ in [*waiting, *foreseen])
    unknown = len(waiting) + len(foreseen) - known
    later = "ask again when some are decided"
    if job.task is None and unknown >= MOST_UNKNOWN:
        raise TaskRejected(f"{unknown} requests for unknown tasks already wait; {later}")
    counted = known if job.task else known + unknown
    if counted >= agent.settings.max_open_escalations:
        raise TaskRejected(f"{counted} requests already wait for approval; {later}")


def escalate(database: Database, claim: Claim, approver: str, asked: Escalation) -> bool:
    """Store the request to the approver and the interim report; False when the claim was lost."""
    params = (
        claim_params(database, claim.id, claim.token)
        | columns(asked.notice)
        | {
            "approver": approver,
            "card_subject": asked.card.subject,
            "card_body": asked.card.body,
            "card_data": json.dumps(asked.card.data),
            "digest": asked.card.data["digest"],
            "why": asked.card.why,
            "until": asked.card.until,
        }
    )
    rows = database.fetch(ESCALATE + ANSWER, params)
    return bool(rows) or was_ours(database, claim.id, claim.token)


def waiting(database: Database, approver: str) -> list[Waiting]:
    """Return the tasks that wait for the approver, the oldest request first."""
    return [Waiting(*row) for row in database.fetch(WAITING, about(database, approver))]


def look_alikes(database: Database, approver: str) -> list[tuple[int, str, str | None]]:
    """Return id, sender and subject of requests that only look like this agent's.

    They name a task of it that waits, and are not the request that a task itself names.
    """
    asked = waiting(database, approver)
    tasks, ours = {task.id for task in asked}, {task.card_id for task in asked}
    params = {"approver": approver, "subject_limit": SUBJECT_LIMIT, "most": MOST_COMPARED}
    return [
        (card_id, sender, subject)
        for card_id, sender, subject, about_id in reversed(database.fetch(PENDING_CARDS, params))
        if card_id not in ours and tasks & {about_id, *numbers(subject or "")}
    ]


def numbers(text: str) -> set[int]:
    """Return the numbers that a person reads in a text, in whatever digits.

    What cannot be seen, or only marks a digit, does not part them.
    """
    plain = unicodedata.normalize("NFKD", text)
    seen = (sign for sign in plain if unicodedata.category(sign)[0] not in "CM")
    return {int(digits) for digits in re.findall(r"\d+", INVISIBLE.sub("", "".join(seen)))}


def about(database: Database, approver: str) -> dict[str, object]:
    return {
        "agent": database.agent,
        "approver": approver,
        "data_limit": DATA_LIMIT_BYTES,
        "receipt_read": RECEIPT_LIMIT + LONGEST_SECRET,
    }


def settle(agent: Agent, may_go_on: Callable[[], bool]) -> tuple[list[Waiting], int]:
    """End what was denied or came too late, while the cycle may go on.

    Returns what may run, the oldest request first, and how many tasks were ended.
    """
    settings, database = agent.settings, agent.database
    approved, ended = [], 0
    for task in waiting(database, settings.approver):
        if not may_go_on():
            break
        if is_denied(task):
            ended += end(agent, task, Outcome("denied", error=denial(settings, task)))
        elif not task.in_time:
            ended += end(agent, task, Outcome("expired", error=lateness(task)))
        elif task.card_status == "approved":
            approved.append(task)
    changed(database, settings.approver, MARK_RECEIPTS)
    for card_id in changed(database, settings.approver, WITHDRAW):
        log.info("#%d: request withdrawn, no task waits for it", card_id)
    return approved, ended


def changed(database: Database, approver: str, statement: str) -> list[int]:
    """Change rows that no task depends on: one that is locked or refused must hold up none."""
    try:
        return [id for (id,) in database.fetch(statement, about(database, approver))]
    except psycopg2.Error as error:
        log.error("receipts and requests stay as they are: %s", first_line(error))
        return []


def is_denied(task: Waiting) -> bool:
    """Tell whether it was denied; a denial is final, also where its receipt meets an approval.

    Only the escalation's status approves: a receipt can hold back, never let run.
    """
    approved_after = task.card_status == "approved" and task.receipt is not None
    return task.card_status == "denied" or approved_after


def denial(settings: Settings, task: Waiting) -> str:
    receipt = without_end(task.receipt or "DENIED", RECEIPT_LIMIT, settings.secrets)
    words = clean_line(receipt, settings.secrets)
    said = "" if words == "DENIED" else f", saying: {words}"
    later = "" if task.card_status == "denied" else ", which a later approval cannot undo"
    return f"{settings.approver} denied it{later}{said}"


def lateness(task: Waiting) -> str:
    if task.card_id is None:
        return "its request for approval is gone; nothing ran"
    if task.card_status == "approved":
        return "its approval came too late to be used; nothing ran"
    return "nobody decided in time; nothing ran"


def end(agent: Agent, task: Waiting, outcome: Outcome) -> bool:
    """Report a task that will not run; False where its escalation has changed since it was read.

    So it is where somebody holds a row of the two.
    """
    name = task_name(task.body_start)
    original = Original(task.id, task.subject, name, task.attempt)
    params = columns(report(original, outcome, agent.settings)) | {
        "agent": agent.database.agent,
        "id": task.id,
        "status": "expired" if outcome.verdict == "expired" else "processed",
        "card_id": task.card_id,
        "decision": outcome.verdict,
        "seen": task.card_status,
        "card_limit": card.CARD_LIMIT_BYTES,
    }
    try:
        ended = bool(agent.database.fetch(END_WAITING + ANSWER, params))
    except psycopg2.Error as error:
        why = first_line(error)
        log.error("#%d %s: %s, but cannot be ended: %s", task.id, name, outcome.verdict, why)
        return False
    if ended:
        log.info("#%d %s: %s", task.id, name, outcome.verdict)
    return ended
