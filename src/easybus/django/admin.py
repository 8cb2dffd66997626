"""Dead letters in the admin: looked at, retried, deleted, by those who have the right to.

    view     the list and each letter       change   retry       delete   delete, after a page that asks

They lie in the bus's storage, which may be no database of Django's: so these are views of our own, in the admin's
dress.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_protect

from ..errors import EasybusError
from ..shown import hidden, visible
from .letters import Letters
from .models import DeadLetter

__all__ = ["DeadLetterAdmin"]

if TYPE_CHECKING:
    Base = admin.ModelAdmin[DeadLetter]
else:  # takes no parameters
    Base = admin.ModelAdmin

_AT_ONCE = 100
_log = logging.getLogger("easybus")


@admin.register(DeadLetter)
class DeadLetterAdmin(Base):
    """The pages; permissions are the model's."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        """Nobody adds a dead letter."""
        return False

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("<str:object_id>/", view(self.change_view), name=f"{name}_change"),
        ]

    @method_decorator(csrf_protect)
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list, and what is done to those that are picked."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        try:
            if request.method == "POST":
                return self._act(request, request.POST.getlist("letter"), request.get_full_path())
            return self._list(request)
        except (EasybusError, ImproperlyConfigured) as error:
            return self._out_of_reach(request, error)

    @method_decorator(csrf_protect)
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One letter."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        try:
            if request.method == "POST":
                return self._act(request, [object_id], reverse(self._name("changelist")))
            letter = Letters().get(object_id)
        except (EasybusError, ImproperlyConfigured) as error:
            return self._out_of_reach(request, error)
        if letter is None:
            raise Http404("there is no such dead letter: it was deleted, or replayed with success")
        return self._page(request, "letter.html", title=f"Dead letter of {letter.queue}", letter=letter)

    def _list(self, request: HttpRequest) -> HttpResponse:
        letters = Letters()
        queue, reason = request.GET.get("queue", ""), request.GET.get("reason", "")
        counts = letters.counts()
        found = letters.find(queue, reason, _AT_ONCE + 1)
        return self._page(
            request,
            "list.html",
            title="Dead letters",
            letters=found[:_AT_ONCE],
            more=len(found) > _AT_ONCE,
            queues=[(name, visible(name), number) for name, number in counts.items()],
            total=sum(counts.values()),
            queue=queue,
            reason=reason,
        )

    def _act(self, request: HttpRequest, picked: list[str], back: str) -> HttpResponse:
        action, letters = request.POST.get("action"), Letters()
        allowed = {"retry": self.has_change_permission, "delete": self.has_delete_permission}
        if action not in allowed:
            messages.warning(request, "Choose an action.")
            return HttpResponseRedirect(back)
        if not allowed[action](request):
            raise PermissionDenied
        if not picked:
            messages.warning(request, "Pick the letters that are meant.")
            return HttpResponseRedirect(back)
        try:
            if action == "retry":
                number = letters.retry(picked)
                said = f"{_counted(number)} marked for retry: the handlers of their queues replay them."
            elif "confirmed" not in request.POST:
                found = [one for address in picked if (one := letters.get(address)) is not None]
                return self._page(request, "delete.html", title="Are you sure?", letters=found, back=back)
            else:
                number = letters.delete(picked)
                said = f"{_counted(number)} deleted."
        except ValueError as error:
            raise SuspiciousOperation("no dead letter's address") from error
        _log.info("%s in the admin, by %s", said, request.user.pk)
        messages.success(request, said)
        return HttpResponseRedirect(back)

    def _out_of_reach(self, request: HttpRequest, error: Exception) -> HttpResponse:
        return self._page(
            request, "unreachable.html", status=503, title="Dead letters", error=hidden(visible(str(error)))
        )

    def _page(self, request: HttpRequest, template: str, status: int = 200, **context: Any) -> HttpResponse:
        given = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "list_url": reverse(self._name("changelist")),
            "may_retry": self.has_change_permission(request),
            "may_delete": self.has_delete_permission(request),
            **context,
        }
        return TemplateResponse(request, f"admin/easybus/deadletter/{template}", given, status=status)

    def _name(self, page: str) -> str:
        return f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{page}"


def _counted(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number} dead letters"
