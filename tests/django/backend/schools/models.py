from django.db import models


class School(models.Model):
    name = models.CharField(max_length=100)
    level = models.CharField(max_length=20, db_index=True)
    city = models.CharField(max_length=100)
