"""What a task's cost is held against: a loop on the same table, with two commits a task.

As one would write it by hand: one transaction claims the next row, another stores its report and
ends the claim. Nothing is checked and nothing runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg2
from dotenv import dotenv_values

NEXT = """
SELECT id, from_agent, subject, body
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = 'public_claude' AND from_agent = 'big_bro'
   AND status = 'pending'
 ORDER BY CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                        WHEN 'low' THEN 3 ELSE 4 END, created_at, id
 LIMIT 1 FOR UPDATE SKIP LOCKED
"""
CLAIM = "UPDATE claude_messages SET status = 'processing', read_at = now() WHERE id = %s"
REPORT = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, subject, body, reply_to_id, status)
VALUES ('public_claude', %s, 'response', %s, %s, %s, 'pending')
"""
FINISH = "UPDATE claude_messages SET status = 'processed', processed_at = now() WHERE id = %s"


def main() -> int:
    settings = dotenv_values(Path(__file__).resolve().parent / ".env")
    conn = psycopg2.connect(settings["RESEARCH_DATABASE_URL"])
    while True:
        with conn, conn.cursor() as cursor:
            cursor.execute(NEXT)
            row = cursor.fetchone()
            if row is None:
                break
            cursor.execute(CLAIM, row[:1])
        task_id, sender, subject, body = row
        with conn, conn.cursor() as cursor:
            answer = (sender, f"Task Report: {subject}", f"SUCCESS\n\n{body}", task_id)
            cursor.execute(REPORT, answer)
            cursor.execute(FINISH, (task_id,))
    conn.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
