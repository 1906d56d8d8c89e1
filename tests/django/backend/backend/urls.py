from django.urls import path

from schools.views import primary

urlpatterns = [path("api/schools/primary/", primary)]
