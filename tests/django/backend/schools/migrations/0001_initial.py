from django.db import migrations, models

CITIES = ["北京", "上海", "广州", "深圳", "成都"]


def fill(apps, schema_editor):
    school = apps.get_model("schools", "School")
    school.objects.bulk_create(
        school(name=f"{city}第{number}小学", level="primary", city=city) for city in CITIES for number in range(1, 11)
    )


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="School",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("level", models.CharField(max_length=20, db_index=True)),
                ("city", models.CharField(max_length=100)),
            ],
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
