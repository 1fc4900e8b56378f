"""The whitelist: all that may be asked for.

By hand, without a message: `python task_executor.py NAME [PARAMS_JSON]`.
"""

# Not even __future__ before the import path is cut: it is a module as any other.
import os
import sys

if __name__ == "__main__":
    # What lies beside this file is other programs' too: nothing but the package comes from here.
    FOLDER = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != FOLDER]
    sys.path.insert(0, FOLDER)
    import catalyst_heartbeat  # noqa: F401 - empty, and from now on found by itself

    del sys.path[0]

from catalyst_heartbeat.commands import by_hand
from catalyst_heartbeat.executor import catalogue
from catalyst_heartbeat.tasks import (
    database,
    file_operations,
    logs,
    service_control,
    system_health,
)
from catalyst_heartbeat.tasks.base import NoParams, Task

WHITELIST: dict[str, Task] = {
    # System Health
    "docker_ps": Task("System Health", NoParams, system_health.docker_ps, 30),
    "disk_space": Task("System Health", NoParams, system_health.disk_space, 10),
    "memory_usage": Task("System Health", NoParams, system_health.memory_usage, 10),
    "process_list": Task("System Health", NoParams, system_health.process_list, 10),
    "service_health": Task(
        "System Health", system_health.PortParams, system_health.service_health, 10
    ),
    "all_services_health": Task(
        "System Health", NoParams, system_health.all_services_health, 30
    ),
    "list_tasks": Task("System Health", NoParams, catalogue.list_tasks, 10),
    # Logs
    "docker_logs": Task("Logs", logs.LogServiceParams, logs.docker_logs, 30),
    "catalyst_logs": Task("Logs", logs.LogFileParams, logs.catalyst_logs, 10),
    "system_logs": Task("Logs", logs.UnitParams, logs.system_logs, 15),
    # Database
    "db_agent_status": Task("Database", NoParams, database.db_agent_status, 15),
    "db_pending_messages": Task("Database", NoParams, database.db_pending_messages, 10),
    "db_recent_observations": Task("Database", NoParams, database.db_recent_observations, 10),
    "db_task_history": Task("Database", database.TaskHistory, database.db_task_history, 10),
    # Service Control
    "restart_service": Task(
        "Service Control", service_control.TradingServiceParams,
        service_control.restart_service, 60,
        changes=True, investigate=service_control.investigate_service,
    ),
    "restart_dashboard": Task(
        "Service Control", NoParams, service_control.restart_dashboard, 30,
        changes=True, investigate=service_control.investigate_dashboard,
    ),
    "restart_all_services": Task(
        "Service Control", NoParams, service_control.restart_all_services, 120,
        changes=True, investigate=service_control.investigate_all_services,
    ),
    # File Operations
    "write_file": Task(
        "File Operations", file_operations.WriteFile, file_operations.write_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "edit_file": Task(
        "File Operations", file_operations.EditFile, file_operations.edit_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "rollback_file": Task(
        "File Operations", file_operations.RollbackFile, file_operations.rollback_file, 30,
        changes=True, investigate=file_operations.investigate,
        approval=file_operations.approval_for_path, preview=file_operations.preview,
    ),
    "read_file": Task("File Operations", file_operations.ReadFile, file_operations.read_file, 10),
    "list_backups": Task(
        "File Operations", file_operations.ListBackups, file_operations.list_backups, 10
    ),
}  # fmt: skip

if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(by_hand.main(sys.argv[1:], WHITELIST))
