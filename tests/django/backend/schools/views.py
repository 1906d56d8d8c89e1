from django.http import JsonResponse

from schools.models import School


def primary(request):
    """One query."""
    schools = School.objects.filter(level="primary").order_by("id").values("id", "name", "city")[:20]
    return JsonResponse({"schools": list(schools)}, json_dumps_params={"ensure_ascii": False})
